"""The SDK against the real server: turns that are steered, begun by tools, held back and forked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from backchannel.client import (
    Client,
    ClientConfig,
    Content,
    Conversation,
    Delivery,
    DisconnectPolicy,
    FinishReason,
    Limits,
    Message,
    Part,
    Reply,
    Role,
    Sampling,
    Scheduled,
    Scheduling,
    SessionConfig,
    SideEffect,
    Snapshot,
    Tool,
    ToolDisposition,
    ToolFailedError,
    ToolOutcome,
    tool,
)
from backchannel.rpc.server import Server
from tests.integration.test_client import numbers, until, whole_log
from tests.support.proxy import Proxy

FAST = ClientConfig(backoff_initial_s=0.01, backoff_max_s=0.05)
CONTINUE = DisconnectPolicy(action=DisconnectPolicy.ACTION_CONTINUE)
STEER = Delivery.DELIVERY_STEER


@pytest.fixture
async def sdk(server: Server) -> AsyncIterator[Client]:
    async with Client(str(server.address), config=FAST) as client:
        yield client


# --- steering ---------------------------------------------------------------------------------


async def test_an_answer_is_steered_at_the_end_of_its_sentence(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo", engine_options={"rate": "50"}) as conversation:
        said = "one two three. four five six. " + numbers(500)
        answer = conversation.ask(said)
        first = await anext(answer)
        receipt = await conversation.send("shorter, please", delivery=STEER)
        assert receipt.delivery == STEER
        text = first + "".join([piece async for piece in answer])
        assert answer.reply.finish_reason == FinishReason.FINISH_REASON_STEERED
        assert not answer.reply.complete
        assert text in ("one two three.", "one two three. four five six.")
        assert answer.reply.kept_chars == len(text)
        steered = conversation.answer(receipt.frame_id)
        assert "".join([piece async for piece in steered]) == "shorter, please"
        assert steered.frame_ids == (receipt.frame_id,)
    await whole_log(sdk, conversation.session_id)


async def test_several_steers_have_one_answer(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo", engine_options={"rate": "50"}) as conversation:
        answer = conversation.ask(numbers(20) + ". " + numbers(500))
        await anext(answer)
        receipts = [await conversation.send(text, delivery=STEER) for text in ("be brief", "now")]
        both = conversation.answer(receipts[1].frame_id)
        async for _ in both:
            pass
        assert both.reply.frame_ids == tuple(receipt.frame_id for receipt in receipts)
        assert both.reply.text.endswith("now")


async def test_a_steer_that_comes_too_late_says_that_it_is_an_ordinary_message(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo") as conversation:
        await conversation.say("one")
        reply = await conversation.say("two", delivery=STEER)
        assert reply.text == "two"
        assert reply.delivery == Delivery.DELIVERY_QUEUE


# --- tools that are not waited for ------------------------------------------------------------


class Finder:
    """A tool whose result is there when the test says so."""

    def __init__(self, result: object, **spec: object) -> None:
        self.found = asyncio.Event()
        self.began = asyncio.Event()

        async def find(input: str) -> object:  # noqa: A002 (the scripted model's name)
            self.began.set()
            await self.found.wait()
            return result

        self.tool: Tool = tool(**spec)(find)  # type: ignore[call-overload]  # options by name


async def turns(conversation: Conversation, count: int) -> list[Reply]:
    replies = []
    async for answer in conversation.turns():
        async for _ in answer:
            pass
        replies.append(answer.reply)
        if len(replies) == count:
            break
    return replies


async def test_a_result_that_was_not_waited_for_begins_a_turn_by_itself(sdk: Client) -> None:
    finder = Finder({"found": 7}, blocking=False)
    async with sdk.converse(model="scripted/tool", tools=[finder.tool]) as conversation:
        reply = await conversation.say("look")
        # The answer went on, and ended, while the tool was running.
        assert reply.text == 'result: {"status":"running"}'
        (call,) = (await sdk.session(conversation.session_id)).open_tool_calls
        finder.found.set()
        (told,) = await turns(conversation, 1)
        assert told.text == 'result: [{"status":"running"},{"found":7}]'
        assert told.frame_ids == ()
        assert told.call_ids == (call.call_id,)
    await whole_log(sdk, conversation.session_id)


async def test_a_silent_result_waits_for_the_next_message(sdk: Client) -> None:
    quiet = Scheduled({"found": 7}, Scheduling.SCHEDULING_SILENT)
    finder = Finder(quiet, blocking=False)
    async with sdk.converse(model="scripted/tool", tools=[finder.tool]) as conversation:
        await conversation.say("look")
        finder.found.set()
        event = await until(conversation, "tool_call_finished")
        assert event.tool_call_finished.scheduling == Scheduling.SCHEDULING_SILENT
        assert (await sdk.session(conversation.session_id)).running_turn_id == ""
        answer = conversation.ask("and?")
        await anext(answer)
        assert answer.call_ids == (event.tool_call_finished.call_id,)


async def test_a_result_may_interrupt(sdk: Client) -> None:
    finder = Finder({"found": 7}, blocking=False, scheduling=Scheduling.SCHEDULING_INTERRUPT)
    async with sdk.converse(model="scripted/tool", tools=[finder.tool]) as conversation:
        await conversation.say("look")
        finder.found.set()
        (told,) = await turns(conversation, 1)
        assert told.text == 'result: [{"status":"running"},{"found":7}]'
    events = await whole_log(sdk, conversation.session_id)
    (over,) = [event for event in events if event.HasField("tool_call_finished")]
    assert over.tool_call_finished.scheduling == Scheduling.SCHEDULING_INTERRUPT


async def test_a_stop_lets_a_tool_finish_and_says_so(sdk: Client) -> None:
    finder = Finder({"booked": True}, side_effect=SideEffect.SIDE_EFFECT_IRREVERSIBLE)
    async with sdk.converse(model="scripted/tool", tools=[finder.tool]) as conversation:
        answering = asyncio.create_task(conversation.say("book"))
        await finder.began.wait()
        await conversation.interrupt(tools=ToolDisposition.TOOL_DISPOSITION_LET_FINISH)
        (outcome,) = (await answering).tools
        assert outcome.state == ToolOutcome.STATE_STILL_RUNNING
        assert outcome.side_effect == SideEffect.SIDE_EFFECT_IRREVERSIBLE
        finder.found.set()
        over = await until(conversation, "tool_call_finished")
        assert over.tool_call_finished.scheduling == Scheduling.SCHEDULING_SILENT
        reply = await conversation.say("and?")
        assert reply.call_ids == (outcome.call_id,)


# --- results in parts -------------------------------------------------------------------------


async def test_an_async_generator_sends_its_text_as_it_comes(sdk: Client) -> None:
    seen = asyncio.Event()

    @tool
    async def read(input: str) -> AsyncIterator[str]:  # noqa: A002 (the scripted model's name)
        yield "once upon"
        # Only goes on when a reader has the first part: so it was sent at once.
        await seen.wait()
        yield " a time"

    async with sdk.converse(model="scripted/tool", tools=[read]) as conversation:
        receipt = await conversation.send("go")
        output = (await until(conversation, "tool_call_output")).tool_call_output
        assert (output.index, output.content.parts[0].text) == (0, "once upon")
        seen.set()
        over = (await until(conversation, "tool_call_finished")).tool_call_finished
        assert "".join(part.text for part in over.result.content.parts) == "once upon a time"
        assert receipt.turn_id


async def test_a_generator_in_a_thread_sends_a_list_piece_by_piece(sdk: Client) -> None:
    @tool
    def rows(input: str) -> Iterator[dict[str, int]]:  # noqa: A002 (the scripted model's name)
        for row in range(3):
            yield {"row": row}

    async with sdk.converse(model="scripted/tool", tools=[rows]) as conversation:
        reply = await conversation.say("go")
        assert reply.text == 'result: [{"row":0},{"row":1},{"row":2}]'
    events = await whole_log(sdk, conversation.session_id)
    parts = [event.tool_call_output for event in events if event.HasField("tool_call_output")]
    assert [json.loads(part.json) for part in parts] == [{"row": 0}, {"row": 1}]


async def test_a_generator_that_fails_ends_with_what_it_says(sdk: Client) -> None:
    @tool
    async def rows(input: str) -> AsyncIterator[str]:  # noqa: A002 (the scripted model's name)
        yield "one"
        raise ToolFailedError("the table is locked")

    async with sdk.converse(model="scripted/tool", tools=[rows]) as conversation:
        reply = await conversation.say("go")
        assert reply.text == 'result: {"error":"the table is locked"}'


async def test_a_generator_that_says_too_much_is_an_error_that_the_model_is_told(
    sdk: Client,
) -> None:
    closed = False

    @tool
    async def flood(input: str) -> AsyncIterator[Content]:  # noqa: A002 (the scripted model's name)
        nonlocal closed
        try:
            while True:
                yield Content(parts=[Part(text="x" * 300_000)])
        finally:
            closed = True

    async with sdk.converse(model="scripted/tool", tools=[flood]) as conversation:
        reply = await conversation.say("go")
        assert reply.text.startswith('result: {"error":"the result was refused: ')
    assert closed


# --- the credit window ------------------------------------------------------------------------


async def test_iterating_is_what_lets_an_answer_go_on(sdk: Client) -> None:
    window = Limits(max_unacked_chars=20)
    async with sdk.converse(model="scripted/count", limits=window) as conversation:
        reply = await conversation.say("count")
        assert reply.text == numbers(100)
        answer = conversation.ask("again")
        await anext(answer)
        # Nobody asks for more: it stands still.
        await asyncio.sleep(0.3)
        seq = (await sdk.session(conversation.session_id)).last_seq
        await asyncio.sleep(0.2)
        session = await sdk.session(conversation.session_id)
        assert session.last_seq == seq
        assert session.running_turn_id == answer.turn_id
        async for _ in answer:
            pass
        assert answer.reply.text == numbers(100)
        assert answer.reply.timing.paused.ToMilliseconds() > 100


async def test_whoever_acks_alone_says_what_was_seen(sdk: Client) -> None:
    async with sdk.converse(
        model="scripted/count", limits=Limits(max_unacked_chars=20)
    ) as conversation:
        answer = conversation.ask("count")
        await anext(answer)
        conversation.ack()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.finish(), timeout=0.5)
        snapshot = await sdk.snapshot(conversation.session_id)
        assert 20 <= len(snapshot.turns[0].text) < 40


async def test_a_position_is_told_again_on_a_new_connection(server: Server) -> None:
    window = Limits(max_unacked_chars=20)
    async with (
        Proxy(str(server.address)) as proxy,
        Client(proxy.address, config=FAST) as sdk,
        sdk.converse(model="scripted/count", limits=window, on_disconnect=CONTINUE) as conversation,
    ):
        answer = conversation.ask("count", sampling=Sampling(max_tokens=300))
        pieces = [await anext(answer)]
        async for piece in answer:
            pieces.append(piece)
            if len(pieces) % 20 == 0:
                proxy.cut()
        assert "".join(pieces) == numbers(300)


# --- the slow reader --------------------------------------------------------------------------


async def test_a_reader_that_lags_gets_a_snapshot_in_place_of_what_it_missed(
    server: Server,
) -> None:
    address = str(server.address)
    slow = ClientConfig(backoff_initial_s=0.01, backoff_max_s=0.05, max_buffered_bytes=2000)
    async with Client(address, config=FAST) as sdk, Client(address, config=slow) as slow_sdk:
        session = await sdk.create(SessionConfig(model="scripted/echo"))
        snapshots: list[Snapshot] = []
        async with (
            sdk.resume(session.session_id) as quick,
            slow_sdk.resume(
                session.session_id, max_lag_events=50, on_snapshot=snapshots.append
            ) as behind,
        ):
            for _ in range(40):
                await quick.say("word " * 2000 + "end")
            last = quick.seq
            while behind.seq < last:
                await behind.receive()
        assert snapshots
        assert len(snapshots[-1].turns) > 1


# --- forks and history ------------------------------------------------------------------------


async def test_a_fork_is_another_session_with_the_same_past(sdk: Client) -> None:
    async with sdk.converse(model="scripted/echo", system="be kind") as conversation:
        await conversation.say("one")
        second = await conversation.send("two")
        async for _ in conversation.answer(second.frame_id):
            pass
        fork = await sdk.fork(
            conversation.session_id, second.seq - 1, SessionConfig(labels={"try": "2"})
        )
        assert fork.session_id != conversation.session_id
        assert fork.config.system == "be kind"
        assert fork.config.labels == {"try": "2"}
        async with sdk.resume(fork.session_id, after_seq=fork.last_seq) as other:
            assert [message.parts[0].text for message in other.session.config.history] == [
                "one",
                "one",
            ]
            assert (await other.say("two, differently")).text == "two, differently"
        turns = (await sdk.snapshot(conversation.session_id)).turns
        assert [turn.text for turn in turns] == ["one", "two"]


async def test_a_history_from_elsewhere_is_gone_on_from(sdk: Client) -> None:
    history = [
        Message(role=Role.ROLE_USER, parts=[Part(text="hello")]),
        Message(role=Role.ROLE_ASSISTANT, parts=[Part(text="hi")]),
    ]
    async with sdk.converse(model="scripted/echo", history=history) as conversation:
        assert (await conversation.say("go on")).text == "go on"
        assert list(conversation.session.config.history) == history
