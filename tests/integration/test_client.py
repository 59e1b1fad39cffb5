"""The SDK against the real server, over a wire that is cut, frozen and killed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backchannel.client import (
    Client,
    ClientConfig,
    ConnectionChange,
    Conversation,
    Delivery,
    DisconnectPolicy,
    Event,
    FinishReason,
    Keep,
    Lost,
    ReceiptStatus,
    Sampling,
    SessionConfig,
    SessionGoneError,
    StatusError,
    ToolCallOutcome,
    ToolContext,
    ToolFailedError,
    TurnFailedError,
    tool,
)
from backchannel.rpc.server import Server
from tests.scale import scale
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.stream import check_log

FAST = ClientConfig(backoff_initial_s=0.01, backoff_max_s=0.05)
ALL = range(1, 101)
CONTINUE = DisconnectPolicy(action=DisconnectPolicy.ACTION_CONTINUE)


@pytest.fixture
async def sdk(server: Server) -> AsyncIterator[Client]:
    async with Client(str(server.address), config=FAST) as client:
        yield client


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(str(server.address)) as wire:
        yield wire


async def whole_log(client: Client, session_id: str) -> list[Event]:
    """Everything up to now, from the beginning."""
    last_seq = (await client.session(session_id)).last_seq
    events: list[Event] = []
    async with client.resume(session_id) as conversation:
        async for event in conversation.events():
            events.append(event)
            if event.seq >= last_seq:
                break
    check_log(events)
    return events


async def until(conversation: Conversation, kind: str) -> Event:
    async for event in conversation.events():
        if event.HasField(kind):  # type: ignore[arg-type]  # one of the kinds
            return event
    raise AssertionError(f"the session ended before {kind}")


def numbers(up_to: int) -> str:
    return " ".join(str(number) for number in range(1, up_to + 1))


# --- talking ----------------------------------------------------------------------------------


async def test_models_are_listed_the_default_first(sdk: Client) -> None:
    models = await sdk.models()
    assert models[0].name == "scripted/echo"
    assert "scripted/count" in [model.name for model in models]


async def test_say_and_ask(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo") as conversation:
        reply = await conversation.say("hello there, world")
        assert reply.text == "hello there, world"
        assert reply.complete
        assert reply.usage.generated_tokens == reply.usage.delivered_tokens == 3
        assert reply.timing.total.ToNanoseconds() > 0
        answer = conversation.ask("one more time")
        assert "".join([piece async for piece in answer]) == "one more time"
        assert answer.reply.turn_id != reply.turn_id
        assert conversation.session.config.model == "scripted/echo"
    await whole_log(sdk, conversation.session_id)


async def test_sampling_for_one_turn(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count") as conversation:
        reply = await conversation.say("count", sampling=Sampling(max_tokens=5))
        assert reply.text == numbers(5)


async def test_a_failing_engine_is_an_error_with_what_was_said(sdk: Client) -> None:
    async with sdk.converse(model="scripted/fail") as conversation:
        with pytest.raises(TurnFailedError) as caught:
            await conversation.say("go")
        assert caught.value.reply.text == numbers(5)
        assert caught.value.reply.finish_reason == FinishReason.FINISH_REASON_ERROR


async def test_what_is_wrong_is_said_with_the_field(sdk: Client) -> None:
    with pytest.raises(StatusError) as caught:
        async with sdk.converse(model="scripted/nobody"):
            raise AssertionError("it opened")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.field.endswith("model")
    async with sdk.converse() as conversation:
        with pytest.raises(StatusError) as caught:
            await conversation.send("")
        assert caught.value.reason == "FIELD_REQUIRED"
        # The stream goes on.
        assert (await conversation.say("still here")).text == "still here"


async def test_a_session_that_is_not_there(sdk: Client) -> None:
    with pytest.raises(SessionGoneError):
        async with sdk.resume("nobody-knows-this-one"):
            raise AssertionError("it opened")
    with pytest.raises(SessionGoneError):
        await sdk.session("nobody-knows-this-one")


async def test_sessions_are_made_listed_and_deleted(sdk: Client) -> None:
    made = [await sdk.create(SessionConfig(model="scripted/echo")) for _ in range(3)]
    listed = [session.session_id async for session in sdk.sessions()]
    assert listed == [session.session_id for session in reversed(made)]
    async with sdk.resume(made[0].session_id) as conversation:
        await sdk.delete(made[0].session_id)
        kinds = [event.WhichOneof("kind") async for event in conversation.events()]
        assert kinds == ["session_opened", "session_closed"]
    with pytest.raises(SessionGoneError):
        await sdk.delete(made[0].session_id)


async def test_the_same_id_and_settings_are_the_same_session(sdk: Client) -> None:
    config = SessionConfig(session_id="a-secret-of-at-least-16", model="scripted/echo")
    first = await sdk.create(config)
    assert (await sdk.create(config)).create_time == first.create_time


async def test_a_snapshot_shows_what_was_said(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo") as conversation:
        await conversation.say("hello")
        await conversation.say("again")
    snapshot = await sdk.snapshot(conversation.session_id)
    assert [turn.text for turn in snapshot.turns] == ["hello", "again"]
    async with sdk.resume(conversation.session_id, snapshot=True) as resumed:
        assert resumed.snapshot == snapshot
        assert resumed.seq == snapshot.seq
        assert (await resumed.say("third")).text == "third"


async def test_the_example_in_the_docs_runs(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    example = example.replace("127.0.0.1:50051", str(server.address))
    names: dict[str, Any] = {"__name__": "example"}
    exec(example.replace("asyncio.run(main())", ""), names)
    await names["main"]()
    # The server is in this process, and its log goes to the same place.
    out = capsys.readouterr().out
    assert "What is Backchannel?" in out
    assert out.endswith("\nAnd what is 12 * 7? (6 tokens)\n")


# --- stopping ---------------------------------------------------------------------------------


async def test_a_stop_keeps_what_was_iterated_and_no_more(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count", engine_options={"rate": "100"}) as conversation:
        answer = conversation.ask("count")
        seen = ""
        async for piece in answer:
            seen += piece
            if len(seen) > 20:
                break
        receipt = await conversation.interrupt()
        assert receipt.status == ReceiptStatus.RECEIPT_STATUS_ACCEPTED
        async for _ in answer:
            pass
        reply = answer.reply
        assert reply.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
        assert not reply.complete
        assert reply.text[: reply.kept_chars] == seen
        stale = await conversation.interrupt(turn_id=reply.turn_id)
        assert stale.status == ReceiptStatus.RECEIPT_STATUS_STALE
    snapshot = await sdk.snapshot(conversation.session_id)
    assert snapshot.turns[0].kept_chars == len(seen)


async def test_a_stop_after_a_faster_engine_cuts_back_to_what_was_seen(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count") as conversation:
        answer = conversation.ask("count")
        assert await anext(answer) == "1"
        # It has long ended there; here one number was seen.
        async with sdk.resume(conversation.session_id) as another:
            await until(another, "turn_finished")
        receipt = await conversation.interrupt()
        assert receipt.status == ReceiptStatus.RECEIPT_STATUS_ACCEPTED
        cut = await until(conversation, "turn_truncated")
        assert cut.turn_truncated.kept_chars == 1


async def test_a_stop_can_roll_back(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count", engine_options={"rate": "50"}) as conversation:
        answer = conversation.ask("count")
        await anext(answer)
        await conversation.interrupt(keep=Keep.KEEP_NOTHING)
        async for _ in answer:
            pass
        assert answer.reply.kept_chars == 0


async def test_a_message_can_interrupt(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count", engine_options={"rate": "50"}) as conversation:
        first = conversation.ask("count")
        await anext(first)
        second = conversation.ask(
            "again",
            delivery=Delivery.DELIVERY_INTERRUPT,
            sampling=Sampling(max_tokens=3),
        )
        assert "".join([piece async for piece in second]) == numbers(3)
    turns = (await sdk.snapshot(conversation.session_id)).turns
    assert turns[0].finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
    assert turns[0].kept_chars == 1


async def test_a_queued_message_is_taken_back(sdk: Client) -> None:
    async with sdk.converse(model="scripted/stall") as conversation:
        await conversation.send("first")
        await until(conversation, "turn_started")
        second = await conversation.send("second")
        assert not second.turn_id
        await conversation.interrupt(keep=Keep.KEEP_GENERATED)
        finished = await until(conversation, "turn_finished")
        assert finished.turn_finished.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
        # The queue runs next.
        started = await until(conversation, "turn_started")
        assert list(started.turn_started.frame_ids) == [second.frame_id]
        await conversation.interrupt()


# --- tools ------------------------------------------------------------------------------------


async def test_tools_run_together_and_their_results_are_said(sdk: Client) -> None:
    both = asyncio.Barrier(2)

    @tool
    async def first(input: str) -> dict[str, str]:  # noqa: A002 (what the scripted model sends)
        """One."""
        await both.wait()
        return {"first": input}

    @tool(name="second")
    async def another(input: str) -> str:  # noqa: A002 (what the scripted model sends)
        """Another."""
        await both.wait()
        return input.upper()

    async with sdk.converse(model="scripted/tools", tools=[first, another]) as conversation:
        reply = await conversation.say("hi")
    assert reply.text == 'result: [{"first":"hi"},"HI"]'


async def test_a_failing_tool_is_told_to_the_model(sdk: Client) -> None:
    @tool
    def refuse(input: str) -> None:  # noqa: A002 (what the scripted model sends)
        """Refuse."""
        raise ToolFailedError(f"not {input}", code="NO")

    async with sdk.converse(model="scripted/tool", tools=[refuse]) as conversation:
        assert (await conversation.say("today")).text == 'result: {"error":"not today"}'


async def test_progress_keeps_a_slow_tool_alive(sdk: Client) -> None:
    @tool(idle_timeout_s=0.3, timeout_s=20)
    async def slow(input: str, context: ToolContext) -> str:  # noqa: A002 (as above)
        """Take a second."""
        for step in range(10):
            await asyncio.sleep(0.1)
            context.progress(step / 10, input)
        return "done"

    async with sdk.converse(model="scripted/tool", tools=[slow]) as conversation:
        assert (await conversation.say("x")).text == 'result: "done"'


async def test_a_stop_cancels_a_running_tool(sdk: Client) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    @tool
    async def forever(input: str) -> None:  # noqa: A002 (what the scripted model sends)
        """Never end."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with sdk.converse(model="scripted/tool", tools=[forever]) as conversation:
        await conversation.send("go")
        await until(conversation, "tool_call_ready")
        await began.wait()
        await conversation.interrupt()
        over = await until(conversation, "tool_call_finished")
        outcome = over.tool_call_finished.outcome
        assert outcome == ToolCallOutcome.TOOL_CALL_OUTCOME_CANCELLED
        await cancelled.wait()


async def test_an_open_call_is_run_by_whoever_resumes(sdk: Client) -> None:
    runs: list[str] = []

    @tool
    def look(input: str, context: ToolContext) -> str:  # noqa: A002 (as above)
        """Look."""
        runs.append(context.call_id)
        return f"saw {input}"

    async with sdk.converse(
        session_id="the-first-does-not-run-it",
        model="scripted/tool",
        tools=[look],
        on_disconnect=CONTINUE,
    ) as first:
        # The declared tool, without anybody to run it: as a client that dies at this moment.
        first._stream._calls._tools.clear()
        await first.send("it")
        call_id = (await until(first, "tool_call_ready")).tool_call_ready.call_id
    assert runs == []
    async with sdk.resume(first.session_id, tools=[look], after_seq=first.seq) as second:
        over = await until(second, "tool_call_finished")
        assert over.tool_call_finished.result.json == '"saw it"'
        await until(second, "turn_finished")
    assert runs == [call_id]
    # Reading it all again runs nothing.
    async with sdk.resume(first.session_id, tools=[look]) as third:
        await until(third, "turn_finished")
    assert runs == [call_id]


# --- a bad wire -------------------------------------------------------------------------------


async def cut_now_and_then(proxy: Proxy, draw: random.Random) -> None:
    while True:
        await asyncio.sleep(draw.uniform(0.01, 0.12))
        proxy.cut()


async def while_cut(proxy: Proxy, seed: int, work: Callable[[], Awaitable[None]]) -> None:
    cutter = asyncio.create_task(cut_now_and_then(proxy, random.Random(seed)))
    try:
        await work()
    finally:
        cutter.cancel()


@pytest.mark.parametrize("seed", range(scale(3, 30)))
async def test_a_wire_that_is_cut_all_the_time_loses_and_repeats_nothing(
    proxy: Proxy, sdk: Client, seed: int
) -> None:
    seqs: list[int] = []
    text = ""
    lost: list[ConnectionChange] = []

    async def read(conversation: Conversation) -> None:
        nonlocal text
        async for event in conversation.events():
            seqs.append(event.seq)
            text += event.output_delta.text
            if event.HasField("turn_finished"):
                return

    async def work() -> None:
        async with (
            Client(proxy.address, config=FAST) as client,
            client.converse(
                model="scripted/count",
                engine_options={"rate": "100"},
                on_connection=lost.append,
            ) as conversation,
        ):
            await conversation.send("count")
            await read(conversation)
            assert await whole_log(sdk, conversation.session_id)

    await while_cut(proxy, seed, work)
    assert any(isinstance(change, Lost) for change in lost), "nothing was cut"
    assert text == numbers(100)
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("seed", range(scale(2, 20)))
async def test_each_message_is_taken_once_over_such_a_wire(
    proxy: Proxy, sdk: Client, seed: int
) -> None:
    said = [f"message {number}" for number in range(scale(15, 100))]

    async def work() -> None:
        async with (
            Client(proxy.address, config=FAST) as client,
            client.converse(model="scripted/echo", session_id=f"one-by-one-{seed:06}") as one,
        ):
            for text in said:
                assert (await one.say(text)).text == text
                await asyncio.sleep(0.02)

    await while_cut(proxy, seed, work)
    assert proxy.connections > 1, "nothing was cut"
    events = await whole_log(sdk, f"one-by-one-{seed:06}")
    taken = [
        event.input_accepted.message.parts[0].text
        for event in events
        if event.HasField("input_accepted")
    ]
    assert taken == said


async def test_a_frozen_wire_is_noticed_and_left(proxy: Proxy) -> None:
    config = ClientConfig(silence_timeout_s=0.4, backoff_initial_s=0.01)
    lost: list[Lost] = []

    def changed(change: ConnectionChange) -> None:
        if isinstance(change, Lost):
            lost.append(change)
            proxy.cut()
            proxy.thaw()

    async with (
        Client(proxy.address, config=config) as client,
        client.converse(
            model="scripted/count", engine_options={"rate": "50"}, on_connection=changed
        ) as conversation,
    ):
        answer = conversation.ask("count", sampling=Sampling(max_tokens=60))
        for _ in range(5):
            await anext(answer)
        proxy.freeze()
        async for _ in answer:
            pass
        assert answer.reply.text == numbers(60)
    assert "said nothing" in str(lost[0].error)


async def test_a_call_that_is_left_ends_on_the_server_too(server: Server, sdk: Client) -> None:
    # Whoever vanishes without a goodbye is gone at once for the disconnect policy.
    now = DisconnectPolicy(action=DisconnectPolicy.ACTION_CANCEL_NOW)
    conversation = sdk.converse(model="scripted/stall", on_disconnect=now)

    async def vanish() -> None:
        async with conversation:
            await conversation.send("go")
            await until(conversation, "turn_started")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await vanish()
    async with sdk.resume(conversation.session_id) as another:
        finished = await until(another, "turn_finished")
    reason = finished.turn_finished.finish_reason
    assert reason == FinishReason.FINISH_REASON_DISCONNECTED


# --- a server that dies -----------------------------------------------------------------------


async def test_a_killed_server_that_comes_back_is_gone_on_with(
    server_process: ServerProcess,
) -> None:
    seqs: list[int] = []
    async with (
        Client(server_process.address, config=FAST) as client,
        client.converse(
            model="scripted/count", engine_options={"rate": "50"}, on_disconnect=CONTINUE
        ) as conversation,
    ):
        answer = conversation.ask("count")
        for _ in range(10):
            await anext(answer)
        server_process.kill()
        await server_process.start()
        with pytest.raises(TurnFailedError) as caught:
            async for _ in answer:
                pass
        reply = caught.value.reply
        assert reply.finish_reason == FinishReason.FINISH_REASON_OWNER_LOST
        assert numbers(100).startswith(reply.text)
        # The conversation itself goes on.
        again = await conversation.say("count", sampling=Sampling(max_tokens=3))
        assert again.text == numbers(3)
        seqs += [event.seq for event in await whole_log(client, conversation.session_id)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_server_that_is_replaced_is_hardly_noticed(server_process: ServerProcess) -> None:
    async with (
        Client(server_process.address, config=FAST) as client,
        client.converse(model="scripted/echo") as conversation,
    ):
        assert (await conversation.say("before")).text == "before"
        assert await server_process.stop(signal.SIGTERM) == 0
        await server_process.start()
        began = time.monotonic()
        assert (await conversation.say("after")).text == "after"
        assert time.monotonic() - began < 10
