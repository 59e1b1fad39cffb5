"""People, tools and programs that talk upstream while tokens come down: all of it at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Self

import pytest

from backchannel.client import (
    Client,
    ClientConfig,
    ClientFrame,
    Conversation,
    Delivery,
    DisconnectPolicy,
    Event,
    FinishReason,
    Limits,
    Receipt,
    ReceiptStatus,
    Scheduling,
    SessionConfig,
    StatusError,
    ToolDisposition,
    ToolOutcome,
    UserMessage,
)
from backchannel.client.outbox import new_id
from backchannel.rpc.server import Server
from backchannel.v1.session_pb2 import Part, ToolResult, ToolSpec
from tests.integration.test_client import whole_log
from tests.support.server import ServerProcess

FAST = ClientConfig(backoff_initial_s=0.01, backoff_max_s=0.05)
CONTINUE = DisconnectPolicy(action=DisconnectPolicy.ACTION_CONTINUE)
STEERED = FinishReason.FINISH_REASON_STEERED
INTERRUPTED = FinishReason.FINISH_REASON_INTERRUPTED
# What a quick tool tells, and the scripted model then reads out: long enough to be talked into.
STORY = " ".join(f"Sentence {number} is here." for number in range(1, 80))
PATIENCE_S = 20.0
PARAMETERS = '{"type":"object","properties":{"input":{"type":"string"}}}'


def spec(name: str, *, blocking: bool = True, **more: object) -> ToolSpec:
    return ToolSpec(
        name=name,
        parameters_json_schema=PARAMETERS,
        blocking=blocking,
        **more,  # type: ignore[arg-type]  # fields by name
    )


class Party:
    """Somebody who takes part: hears everything in the background and says things meanwhile.

    Args:
        conversation: Their own connection.
        silent: Whether they never say what they have seen.
    """

    def __init__(self, conversation: Conversation, *, silent: bool = False) -> None:
        self.conversation = conversation
        self.heard: list[Event] = []
        self._silent = silent
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self.conversation.__aenter__()
        if self._silent:
            self.conversation.ack(0)
        self._task = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.conversation.__aexit__(None, None, None)

    async def _hear(self) -> None:
        async for event in self.conversation.events():
            async with self._news:
                self.heard.append(event)
                self._news.notify_all()

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.heard if event.WhichOneof("kind") == kind]

    async def hears(
        self, kind: str, nth: int = 1, where: Callable[[Event], bool] = lambda event: True
    ) -> Event:
        """Wait for the nth event of a kind (that is so and so)."""
        found: list[Event] = []

        def there() -> bool:
            found[:] = [event for event in self.of(kind) if where(event)]
            return len(found) >= nth

        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                await self._news.wait_for(there)
        except TimeoutError:
            heard = [event.WhichOneof("kind") for event in self.heard]
            raise AssertionError(f"no {kind} number {nth} in {heard}") from None
        return found[nth - 1]

    async def hears_text(self, text: str) -> None:
        """Wait until the newest turn has said this."""
        await self.hears("output_delta", where=lambda _: text in self.newest_text())

    def newest_text(self) -> str:
        turn_id = self.of("turn_started")[-1].turn_started.turn_id
        return self.text(turn_id)

    def text(self, turn_id: str) -> str:
        deltas = [event.output_delta for event in self.of("output_delta")]
        return "".join(delta.text for delta in deltas if delta.turn_id == turn_id)

    async def says(self, text: str, how: Delivery.ValueType = Delivery.DELIVERY_QUEUE) -> Receipt:
        return await self.conversation.send(text, delivery=how)

    async def call(self, name: str, nth: int = 1) -> str:
        """Wait until a tool is to be run; the call."""
        wanted = await self.hears("tool_call_ready", nth, lambda e: e.tool_call_ready.name == name)
        return wanted.tool_call_ready.call_id

    async def brings(
        self,
        call_id: str,
        value: object,
        scheduling: Scheduling.ValueType = Scheduling.SCHEDULING_UNSPECIFIED,
        *,
        partial: bool = False,
        frame_id: str = "",
    ) -> Receipt:
        result = ToolResult(
            call_id=call_id, json=json.dumps(value), scheduling=scheduling, partial=partial
        )
        frame = ClientFrame(frame_id=frame_id or new_id(), tool_result=result)
        return await self.conversation.send_frame(frame)


@contextlib.asynccontextmanager
async def parties(
    address: str, config: SessionConfig, silent: tuple[bool, ...] = (False, False, False)
) -> AsyncIterator[list[Party]]:
    """Two tabs and a program on one session, each on a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address, config=FAST)) for _ in silent]
        session = await clients[0].create(config)
        present = []
        for client, is_silent in zip(clients, silent, strict=True):
            party = Party(client.resume(session.session_id), silent=is_silent)
            present.append(await stack.enter_async_context(party))
        yield present


async def all_heard_the_same(address: str, present: list[Party]) -> list[Event]:
    """The log, which holds to its promises, and which everybody has heard, whole."""
    async with Client(address, config=FAST) as client:
        log = await whole_log(client, present[0].conversation.session_id)
    for party in present:
        await party.hears(log[-1].WhichOneof("kind") or "", where=lambda e: e.seq >= log[-1].seq)
        assert party.heard[: len(log)] == log
    return log


def only(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.WhichOneof("kind") == kind]


async def test_steering_out_of_credit_while_a_tool_runs_that_nobody_waits_for(
    server: Server,
) -> None:
    config = SessionConfig(
        model="scripted/tools",
        tools=[spec("quick"), spec("slow", blocking=False)],
        limits=Limits(max_unacked_chars=60),
    )
    address = str(server.address)
    # Nobody says by itself what it has seen: the window closes.
    async with parties(address, config, silent=(True, True, True)) as (tab, other, program):
        first = await tab.says("tell me a story")
        slow = await program.call("slow")
        assert (await program.brings(await program.call("quick"), STORY)).turn_id == first.turn_id
        await other.hears_text("Sentence 2")
        held = len(tab.text(first.turn_id))
        await asyncio.sleep(0.2)
        assert len(tab.text(first.turn_id)) == held < 120, "it went on without credit"
        steers = [await other.says("shorter", Delivery.DELIVERY_STEER)]
        steers += [await program.says("and louder", Delivery.DELIVERY_STEER)]
        assert {receipt.delivery for receipt in steers} == {Delivery.DELIVERY_STEER}
        # One of them has seen it all: enough for a sentence to end.
        other.conversation.ack()
        finished = (await tab.hears("turn_finished")).turn_finished
        assert finished.finish_reason == STEERED
        assert finished.usage.kept_tokens == finished.usage.delivered_tokens
        assert finished.timing.paused.ToMilliseconds() >= 150
        assert tab.text(first.turn_id).endswith("is here.")
        second = (await tab.hears("turn_started", 2)).turn_started
        assert list(second.frame_ids) == [receipt.frame_id for receipt in steers]
        # The steered turn's tools are not run again; the new turn has calls of its own.
        await program.brings(await program.call("quick", 2), "brief")
        tab.conversation.ack()
        ended = await tab.hears("turn_finished", 2)
        tab.conversation.ack(ended.seq)
        assert ended.turn_finished.finish_reason == FinishReason.FINISH_REASON_STOP
        # What nobody waited for comes now, in parts, and begins a turn of its own.
        await program.brings(slow, {"part": 1}, partial=True)
        await program.brings(slow, {"part": 2}, Scheduling.SCHEDULING_WHEN_IDLE)
        third = (await tab.hears("turn_started", 3)).turn_started
        assert (list(third.frame_ids), list(third.call_ids)) == ([], [slow])
        tab.conversation.ack()
        await tab.hears_text("result:")
        while len(tab.of("turn_finished")) < 3:
            tab.conversation.ack()
            await asyncio.sleep(0.01)
        assert '{"part":2}' in tab.text(third.turn_id)
        log = await all_heard_the_same(address, [tab, other, program])
    ready = [event.tool_call_ready.call_id for event in only(log, "tool_call_ready")]
    over = [event.tool_call_finished.call_id for event in only(log, "tool_call_finished")]
    assert len(set(ready)) == len(ready) == 4
    assert len(set(over)) == len(over) == 3


async def test_a_result_interrupts_while_a_message_waits(server: Server) -> None:
    config = SessionConfig(
        model="scripted/tools",
        tools=[spec("quick"), spec("slow", blocking=False)],
        engine_options={"rate": "100"},
    )
    address = str(server.address)
    async with parties(address, config) as (tab, other, program):
        first = await tab.says("tell me a story")
        slow = await program.call("slow")
        await program.brings(await program.call("quick"), STORY)
        await other.hears_text("Sentence 2")
        waiting = await other.says("and then?")
        assert waiting.delivery == Delivery.DELIVERY_QUEUE
        # Said for another moment than this: refused, and nothing changes.
        with pytest.raises(StatusError) as refused:
            await program.conversation.send(
                UserMessage(parts=[Part(text="stop that")], expected_turn_id="another")
            )
        assert refused.value.reason == "TURN_MISMATCH"
        frame_id = new_id()
        alarm = {"alarm": "fire"}
        told = await program.brings(slow, alarm, Scheduling.SCHEDULING_INTERRUPT, frame_id=frame_id)
        again = await program.brings(
            slow, alarm, Scheduling.SCHEDULING_INTERRUPT, frame_id=frame_id
        )
        assert again.status == ReceiptStatus.RECEIPT_STATUS_DUPLICATE
        assert again.seq == told.seq
        finished = (await tab.hears("turn_finished")).turn_finished
        assert (finished.turn_id, finished.finish_reason) == (first.turn_id, INTERRUPTED)
        stopped = (await tab.hears("turn_interrupted")).turn_interrupted
        assert stopped.kept_chars == len(tab.text(first.turn_id))
        assert stopped.dropped_chars == 0
        states = {tool.name: tool.state for tool in stopped.tools}
        assert states["quick"] == ToolOutcome.STATE_COMPLETED
        # The next turn is told, at once; the message is answered, once.
        second = (await tab.hears("turn_started", 2)).turn_started
        assert list(second.call_ids) == [slow]
        await tab.hears(
            "turn_started", where=lambda e: waiting.frame_id in e.turn_started.frame_ids
        )
        await program.brings(await program.call("quick", 2), "the end")
        await program.brings(await program.call("slow", 2), None, Scheduling.SCHEDULING_SILENT)
        answered = await tab.hears(
            "turn_started", where=lambda e: waiting.frame_id in e.turn_started.frame_ids
        )
        turn_id = answered.turn_started.turn_id
        await tab.hears("turn_finished", where=lambda e: e.turn_finished.turn_id == turn_id)
        log = await all_heard_the_same(address, [tab, other, program])
    frames = [f for event in only(log, "turn_started") for f in event.turn_started.frame_ids]
    assert sorted(frames) == sorted([first.frame_id, waiting.frame_id])
    told_calls = [c for event in only(log, "turn_started") for c in event.turn_started.call_ids]
    assert told_calls.count(slow) == 1


async def test_two_tabs_stop_and_redirect_at_once_while_tools_run(server: Server) -> None:
    config = SessionConfig(
        model="scripted/tools",
        tools=[
            spec("quick"),
            spec("careful", on_interrupt=ToolDisposition.TOOL_DISPOSITION_LET_FINISH),
        ],
    )
    address = str(server.address)
    async with parties(address, config) as (tab, other, program):
        first = await tab.says("do it")
        quick, careful = await program.call("quick"), await program.call("careful")
        turn_id = first.turn_id
        # All at once, from three connections: a stop, a redirection, and a result.
        stop, redirect, result = await asyncio.gather(
            tab.conversation.interrupt(turn_id=turn_id),
            other.says("something else", Delivery.DELIVERY_INTERRUPT),
            program.brings(quick, "done"),
        )
        accepted = ReceiptStatus.RECEIPT_STATUS_ACCEPTED
        assert redirect.status == result.status == accepted
        assert stop.status in (accepted, ReceiptStatus.RECEIPT_STATUS_STALE)
        stopped = (await tab.hears("turn_interrupted")).turn_interrupted
        states = {tool.call_id: tool.state for tool in stopped.tools}
        # Whatever came first, what is said of the call is what became of it.
        ends = await tab.hears(
            "tool_call_finished", where=lambda e: e.tool_call_finished.call_id == quick
        )
        won = ends.seq < (await tab.hears("turn_interrupted")).seq and not only(
            tab.heard, "tool_call_cancelled"
        )
        assert states[quick] == (
            ToolOutcome.STATE_COMPLETED if won else ToolOutcome.STATE_CANCEL_SENT
        )
        assert states[careful] == ToolOutcome.STATE_STILL_RUNNING
        # The careful one goes on, and its result is told with a later turn that it does not begin.
        await program.call("careful", 2)
        await program.brings(careful, "finished after all")
        over = await tab.hears(
            "tool_call_finished", where=lambda e: e.tool_call_finished.call_id == careful
        )
        assert over.tool_call_finished.scheduling == Scheduling.SCHEDULING_SILENT
        assert not over.tool_call_finished.late
        for name in ("quick", "careful"):
            await program.brings(await program.call(name, 2), name)
        await tab.hears("turn_finished", 2)
        await other.says("and?")
        last = (await tab.hears("turn_started", 3)).turn_started
        assert careful in last.call_ids
        for name in ("quick", "careful"):
            await program.brings(await program.call(name, 3), name)
        await tab.hears("turn_finished", 3)
        await all_heard_the_same(address, [tab, other, program])


@pytest.mark.timeout(120)
async def test_a_server_dies_in_the_midst_of_it_all(server_process: ServerProcess) -> None:
    config = SessionConfig(
        model="scripted/tools",
        tools=[spec("quick"), spec("slow", blocking=False), spec("quiet", blocking=False)],
        engine_options={"rate": "50"},
        on_disconnect=CONTINUE,
    )
    address = server_process.address
    async with parties(address, config) as (tab, other, program):
        first = await tab.says("tell me a story")
        quiet, slow = await program.call("quiet"), await program.call("slow")
        await program.brings(await program.call("quick"), STORY)
        await other.hears_text("Sentence 2")
        # Known, and not told yet; half known; said, and not answered yet.
        await program.brings(quiet, "by the way", Scheduling.SCHEDULING_SILENT)
        await program.brings(slow, "half", partial=True)
        queued = [await other.says("and then?"), await tab.says("and after that?")]
        server_process.kill()
        await server_process.start()
        lost = await tab.hears("turn_finished")
        assert lost.turn_finished.turn_id == first.turn_id
        assert lost.turn_finished.finish_reason == FinishReason.FINISH_REASON_OWNER_LOST
        second = (await tab.hears("turn_started", 2)).turn_started
        assert list(second.frame_ids) == [queued[0].frame_id]
        assert list(second.call_ids) == [quiet]
        # The call that was open still is, for whoever brings the rest of its result.
        async with Client(address, config=FAST) as client:
            session = await client.session(tab.conversation.session_id)
        assert slow in [call.call_id for call in session.open_tool_calls]
        for nth in (2, 3):
            await program.brings(await program.call("quick", nth), "the end")
            silent = Scheduling.SCHEDULING_SILENT
            await program.brings(await program.call("quiet", nth), None, silent)
            await program.brings(await program.call("slow", nth), None, silent)
            await tab.hears("turn_finished", nth)
        assert list(tab.of("turn_started")[2].turn_started.frame_ids) == [queued[1].frame_id]
        await program.brings(slow, "whole", Scheduling.SCHEDULING_WHEN_IDLE)
        told = (await tab.hears("turn_started", 4)).turn_started
        assert slow in told.call_ids
        over = await tab.hears(
            "tool_call_finished", where=lambda e: e.tool_call_finished.call_id == slow
        )
        assert over.tool_call_finished.result.json == '["half","whole"]'
        assert not over.tool_call_finished.late
        await tab.hears("turn_finished", 4)
        log = await all_heard_the_same(address, [tab, other, program])
    answered = [f for event in only(log, "turn_started") for f in event.turn_started.frame_ids]
    assert answered == [first.frame_id, *(receipt.frame_id for receipt in queued)]
