"""The line in the service's log for every turn that ends."""

from __future__ import annotations

import hashlib
from typing import Any

from structlog.testing import capture_logs

from backchannel.host.turn_log import TurnLog
from backchannel.v1 import event_pb2, session_pb2
from tests.support.hosting import ShakyLog, attach, hosting, interrupt, log_down, say

SESSION_ID = "a-secret-id-of-a-session"


def lines(logs: Any) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == "turn_finished"]


def finished(reason: str = "STOP") -> event_pb2.Event:
    event = event_pb2.Event()
    event.turn_finished.turn_id = "t1"
    event.turn_finished.finish_reason = session_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    return event


async def test_a_turn_tells_what_it_cost_once_it_is_committed() -> None:
    with capture_logs() as logs:
        async with hosting() as running:
            live = (await running.create(session_id=SESSION_ID, max_tokens=7)).live
            stream = attach(live)
            await live.send(say("a secret"))
            await stream.until("turn_finished")
            ended = stream.events[-1].turn_finished
    (line,) = lines(logs)
    assert line["session"] == hashlib.sha256(SESSION_ID.encode()).hexdigest()[:12]
    assert line["turn_id"] == ended.turn_id
    assert (line["ending"], line["model"], line["log_level"]) == ("stop", "scripted/count", "info")
    assert (line["generated_tokens"], line["wasted_tokens"], line["tool_calls"]) == (7, 0, 0)
    assert line["total_ms"] == round(ended.timing.total.ToNanoseconds() / 1e6, 3)
    assert {"queued_ms", "first_token_ms", "longest_gap_ms"} <= line.keys()
    assert SESSION_ID not in str(logs)
    assert "a secret" not in str(logs)


async def test_its_calls_are_counted() -> None:
    with capture_logs() as logs:
        async with hosting() as running:
            live = (await running.create("scripted/tools", tools=["a", "b"])).live
            stream = attach(live)
            await live.send(say("go"))
            await stream.until(lambda stream: stream.kinds.count("tool_call_ready") == 2)
            await live.send(interrupt(stream.turn_id))
            await stream.until("turn_finished")
    (line,) = lines(logs)
    assert (line["ending"], line["tool_calls"]) == ("interrupted", 2)


async def test_a_failure_is_a_warning_with_its_reason() -> None:
    with capture_logs() as logs:
        async with hosting() as running:
            live = (await running.create("scripted/fail")).live
            stream = attach(live)
            await live.send(say("go"))
            await stream.until("turn_finished")
    (line,) = lines(logs)
    assert (line["ending"], line["reason"]) == ("error", "ENGINE_FAILED")
    assert line["log_level"] == "warning"


async def test_an_ending_that_the_log_refuses_is_not_told() -> None:
    log = ShakyLog()
    with capture_logs() as logs:
        async with hosting(log) as running:
            live = (await running.create(max_tokens=3)).live
            stream = attach(live)
            log.refuse = log_down()
            log.refuse_if = lambda append: any(
                event_pb2.Event.FromString(raw).HasField("turn_finished") for raw in append.events
            )
            await live.send(say("go"))
            while not any(line["event"] == "append_failed" for line in logs):
                await running.clock.advance(0.01)
            assert lines(logs) == []
            log.refuse = None
            while "turn_finished" not in stream.kinds:
                await running.clock.advance(1)
                await stream.next()
    assert len(lines(logs)) == 1


def test_a_turn_that_began_elsewhere_does_not_tell_a_number_that_nobody_knows() -> None:
    with capture_logs() as logs:
        turn_log = TurnLog(SESSION_ID, None)
        ready = event_pb2.Event()
        ready.tool_call_ready.call_id = "c1"
        assert turn_log.decided("tool_call_ready", ready) is None
        write = turn_log.decided("turn_finished", finished("OWNER_LOST"))
        assert write is not None
        assert logs == []
        write(None)
    (line,) = lines(logs)
    assert "tool_calls" not in line
    assert (line["ending"], line["log_level"]) == ("owner_lost", "warning")


class Traced:
    """Of a session's watch, what the log asks."""

    def trace(self, turn_id: str) -> dict[str, str]:
        return {"trace_id": turn_id * 16, "span_id": turn_id * 8}


def test_a_line_bears_the_ids_of_its_turns_trace() -> None:
    with capture_logs() as logs:
        turn_log = TurnLog(SESSION_ID, Traced())  # type: ignore[arg-type]  # the rest is not asked
        write = turn_log.decided("turn_finished", finished())
        assert write is not None
        write(None)
    (line,) = lines(logs)
    assert (line["trace_id"], line["span_id"]) == ("t1" * 16, "t1" * 8)
