"""What survives: readers that leave, processes that die, logs that are damaged."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.session.checkpoint import FRAMES_KEPT_NS
from backchannel.session.receipts import _QUIET_KEPT as QUIET_KEPT
from backchannel.session.session import Session
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    AFTER_GRACE,
    CANCEL_NOW,
    CONTINUE,
    DISCONNECTED,
    DUPLICATE,
    ERROR,
    INTERRUPTED,
    OWNER_LOST,
    SECOND,
    STALE,
    STOP,
    TIMED_OUT,
    Driver,
    durable,
    kind_of,
    limits,
    policy,
    raises_reason,
    refusal,
    seconds,
    spoken,
    tool,
)

# --- receipts ------------------------------------------------------------------------------------


def busy() -> tuple[Driver, dict[str, frame_pb2.ClientFrame]]:
    """A session in which every kind of frame has caused an event."""
    driver = Driver(tools=[tool()])
    frames: dict[str, frame_pb2.ClientFrame] = {}
    receipts: dict[str, frame_pb2.Receipt] = {}

    def send(frame_id: str, **kind: Any) -> None:
        frames[frame_id] = frame_pb2.ClientFrame(frame_id=frame_id, **kind)
        receipts[frame_id] = driver.send(frames[frame_id])
        assert receipts[frame_id].status == ACCEPTED

    def message(text: str, **fields: Any) -> session_pb2.UserMessage:
        return session_pb2.UserMessage(parts=[session_pb2.Part(text=text)], **fields)

    send("m1", message=message("one"))
    call_id = driver.call()
    driver.finish("tool_calls")
    send("m2", message=message("two"))
    send("m3", message=message("three"))
    send("p1", tool_progress=frame_pb2.ToolProgress(call_id=call_id))
    send("w1", interrupt=frame_pb2.Interrupt(target_frame_id="m3"))
    send("r1", tool_result=session_pb2.ToolResult(call_id=call_id, json="1"))
    send("r2", tool_result=session_pb2.ToolResult(call_id=call_id, json="2"))
    driver.text("abc")
    send("i1", interrupt=frame_pb2.Interrupt(turn_id=driver.turns[0].turn_id))
    driver.finish("stopped")
    driver.call()
    driver.finish("tool_calls")
    send("m4", message=message("four", delivery=session_pb2.DELIVERY_INTERRUPT, displayed_seq=1))
    driver.text("def")
    driver.finish()
    turn_id = driver.turns[-1].turn_id
    send("t1", interrupt=frame_pb2.Interrupt(turn_id=turn_id, displayed_offset=1))
    driver.receipts = receipts  # type: ignore[attr-defined]
    return driver, frames


@pytest.mark.parametrize("how", ["alive", "from the log", "from a checkpoint"])
def test_a_repeated_frame_gets_its_first_receipt(how: str) -> None:
    driver, frames = busy()
    receipts = driver.receipts  # type: ignore[attr-defined]
    session = driver.session
    if how == "from the log":
        session = driver.folded()
    elif how == "from a checkpoint":
        session = driver.folded(driver.session.checkpoint(), len(driver.events))
    for frame_id, frame in frames.items():
        decision = session.accept(frame, driver.now_ns)
        first = receipts[frame_id]
        assert first.seq
        assert decision.events == ()
        assert decision.receipt == frame_pb2.Receipt(
            frame_id=frame_id,
            status=DUPLICATE,
            seq=first.seq,
            turn_id=first.turn_id,
            delivery=first.delivery,
        )
    named = {frame_id: receipt.turn_id for frame_id, receipt in receipts.items()}
    first_turn, second, third = (turn.turn_id for turn in driver.turns)
    assert named == {
        "m1": first_turn,
        "m2": "",
        "m3": "",
        "p1": first_turn,
        "w1": "",
        "r1": first_turn,
        "r2": first_turn,
        "i1": first_turn,
        "m4": third,
        "t1": third,
    }
    assert second


@pytest.mark.parametrize("lost", [False, True])
def test_an_id_is_not_used_for_two_frames(lost: bool) -> None:
    driver, frames = busy()
    if lost:
        driver.lose()
    for frame_id in frames:
        assert refusal(driver.say("something else", frame_id)) == "FRAME_ID_REUSED"


def test_quiet_frames_are_remembered_while_their_owner_lives() -> None:
    driver = Driver()
    driver.answer("one")
    assert driver.ack(2, frame_id="a").status == ACCEPTED
    assert driver.ack(2, frame_id="a").status == DUPLICATE
    assert refusal(driver.ack(1, frame_id="a")) == "FRAME_ID_REUSED"
    assert driver.interrupt("gone", "i").status == STALE
    assert driver.interrupt("gone", "i").status == DUPLICATE
    driver.lose()
    assert driver.ack(2, frame_id="a").status == ACCEPTED
    for number in range(QUIET_KEPT):
        driver.ack(1, frame_id=f"b{number}")
    assert driver.ack(2, frame_id="a").status == ACCEPTED


def test_a_frame_without_an_id_is_taken_each_time() -> None:
    driver = Driver()
    assert driver.say("one", "").status == ACCEPTED
    assert driver.say("one", "").status == ACCEPTED
    assert len(driver.of("input_accepted")) == 2


def test_a_checkpoint_forgets_frames_after_a_day() -> None:
    driver = Driver()
    driver.say("one", "m1")
    driver.finish()
    driver.now_ns += FRAMES_KEPT_NS - 1
    driver.say("two", "m2")
    driver.finish()
    data, at = driver.session.checkpoint(), len(driver.events)
    assert driver.folded(data, at).state.frames.find("m1") is not None
    driver.now_ns += 2
    driver.say("three", "m3")
    driver.finish()
    folded = driver.folded(driver.session.checkpoint(), len(driver.events))
    assert folded.state.frames.find("m1") is None
    assert folded.state.frames.find("m2") is not None


# --- readers -------------------------------------------------------------------------------------


def test_nobody_reads_for_the_grace_and_the_turn_ends() -> None:
    driver = Driver(on_disconnect=policy(AFTER_GRACE, 10))
    driver.say()
    driver.text("one ")
    driver.advance(100)
    driver.detach()
    assert not driver.advance(9.9)
    assert not driver.told_to_stop()
    driver.advance(0.1)
    assert driver.told_to_stop()
    driver.finish("stopped")
    assert driver.ending.finish_reason == DISCONNECTED
    assert driver.usage.kept_tokens == 1


def test_who_comes_back_within_the_grace_finds_the_turn_running() -> None:
    driver = Driver(on_disconnect=policy(AFTER_GRACE, 10))
    driver.say()
    driver.detach()
    driver.advance(9.9)
    driver.attach()
    driver.advance(60)
    driver.text("still here")
    driver.finish()
    assert driver.ending.finish_reason == STOP


def test_grace_runs_anew_for_everyone_who_leaves() -> None:
    driver = Driver(readers=2, on_disconnect=policy(AFTER_GRACE, 10))
    driver.say()
    driver.attach(1)
    driver.advance(50)
    driver.detach()
    driver.advance(9)
    driver.attach()
    driver.detach()
    driver.advance(9.9)
    assert not driver.told_to_stop()


def test_the_grace_also_runs_while_tools_are_waited_for() -> None:
    driver = Driver(tools=[tool()], on_disconnect=policy(AFTER_GRACE, 10))
    driver.say()
    driver.call()
    driver.finish("tool_calls")
    driver.say("next", "m2")
    driver.detach()
    driver.advance(10)
    assert driver.ending.finish_reason == DISCONNECTED
    assert driver.last("tool_call_cancelled").tool_call_cancelled.reason == "DISCONNECTED"
    # The grace is over: what waits goes on waiting until somebody reads.
    assert driver.running is None
    assert [queued.frame_id for queued in driver.state.queue] == ["m2"]
    assert driver.timer_ns is None
    driver.attach()
    assert driver.of("turn_started")[-1].frame_id == "m2"


def test_without_any_grace_a_message_waits_for_a_reader() -> None:
    driver = Driver(readers=0, on_disconnect=policy(AFTER_GRACE, 0))
    driver.say()
    assert driver.running is None
    driver.attach()
    assert driver.running is not None


def test_a_message_sent_without_a_reader_is_answered_within_the_grace() -> None:
    driver = Driver(readers=0, on_disconnect=policy(AFTER_GRACE, 10))
    driver.advance(500)
    driver.say()
    assert driver.running is not None
    driver.text("one ")
    driver.advance(10)
    assert driver.told_to_stop()


def test_continue_goes_on_to_the_end_of_the_queue() -> None:
    driver = Driver(readers=0, on_disconnect=policy(CONTINUE))
    driver.say()
    driver.say("two", "m2")
    driver.advance(500)
    driver.finish()
    assert driver.of("turn_started")[-1].frame_id == "m2"
    driver.finish()
    assert [one.finish_reason for one in driver.of("turn_finished")] == [STOP, STOP]


def test_cancel_now_ends_at_once_and_keeps_the_queue() -> None:
    driver = Driver(on_disconnect=policy(CANCEL_NOW))
    driver.say()
    driver.say("two", "m2")
    driver.text("one ")
    driver.detach()
    assert driver.told_to_stop()
    driver.finish("stopped")
    assert driver.ending.finish_reason == DISCONNECTED
    assert driver.running is None
    driver.attach()
    assert driver.of("turn_started")[-1].frame_id == "m2"


def test_a_disconnect_after_a_stop_changes_nothing() -> None:
    driver = Driver(on_disconnect=policy(CANCEL_NOW))
    driver.say()
    driver.interrupt()
    driver.detach()
    driver.finish("stopped")
    assert driver.ending.finish_reason == INTERRUPTED


# --- a new owner ---------------------------------------------------------------------------------


def test_a_turn_that_was_generating_is_lost_with_its_owner() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ", "two ")
    driver.lose()
    assert driver.ending.finish_reason == OWNER_LOST
    assert driver.ending.error.code
    assert driver.usage.estimated
    assert (driver.usage.delivered_tokens, driver.usage.kept_tokens) == (2, 2)
    driver.attach()
    driver.say("next")
    assert spoken(driver.asked.messages)[1] == ("assistant", "one two ")


def test_a_turn_that_was_being_stopped_ends_interrupted() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ")
    driver.interrupt()
    driver.lose()
    assert driver.ending.finish_reason == INTERRUPTED
    assert driver.usage.estimated


def test_a_message_that_waited_is_answered_by_the_new_owner() -> None:
    driver = Driver()
    driver.say()
    driver.say("two", "m2")
    driver.lose(away_s=3600)
    assert driver.of("turn_started")[-1].frame_id == "m2"
    driver.finish()
    assert driver.ending.finish_reason == STOP


def test_a_message_that_waited_in_peace_is_found_too() -> None:
    driver = Driver(readers=0, on_disconnect=policy(CANCEL_NOW))
    driver.say("one", "m1")
    data, at = driver.session.checkpoint(), len(driver.events)
    driver.lose(checkpoint=data, at_seq=at)
    assert driver.session.active
    driver.attach()
    assert driver.of("turn_started")[-1].frame_id == "m1"


def test_a_turn_that_waits_for_tools_goes_on_waiting() -> None:
    driver = Driver(tools=[tool(idle_timeout=seconds(60))])
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.lose(away_s=10)
    assert driver.session.view().state == session_pb2.Session.STATE_WAITING_FOR_TOOLS
    assert driver.timer_ns == driver.now_ns + 30 * SECOND  # the grace
    driver.attach()
    assert driver.timer_ns == driver.now_ns + 50 * SECOND
    driver.result(call_id)
    driver.text("done")
    driver.finish()
    assert driver.ending.finish_reason == STOP
    assert driver.usage.estimated


def test_a_deadline_that_passed_while_nobody_lived_gives_five_seconds() -> None:
    driver = Driver(tools=[tool(idle_timeout=seconds(60))])
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.lose(away_s=90)
    driver.attach()
    assert not driver.advance(4.9)
    driver.advance(0.1)
    assert driver.of("tool_call_finished")[0].call_id == call_id
    assert driver.of("tool_call_finished")[0].outcome == TIMED_OUT
    assert driver.live is not None


def test_a_turn_that_outlived_its_time_gets_five_seconds_too() -> None:
    driver = Driver(tools=[tool()], limits=limits(max_turn_duration=seconds(20)))
    driver.say()
    driver.call()
    driver.finish("tool_calls")
    driver.lose(away_s=600)
    driver.attach()
    driver.advance(4.9)
    assert driver.running is not None
    driver.advance(0.1)
    assert driver.ending.finish_reason == session_pb2.FINISH_REASON_DEADLINE


def test_recovery_counts_as_the_moment_the_reader_left() -> None:
    driver = Driver(tools=[tool()], on_disconnect=policy(AFTER_GRACE, 10))
    driver.say()
    driver.call()
    driver.finish("tool_calls")
    driver.lose(away_s=15)
    driver.advance(9.9)
    assert driver.running is not None
    driver.advance(0.1)
    assert driver.ending.finish_reason == DISCONNECTED


def test_a_log_that_had_refused_a_write_is_named_in_the_ending() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ")
    driver.lose(lost=BackchannelError(Reason.LOG_UNAVAILABLE, "the disk is full"))
    assert driver.ending.finish_reason == ERROR
    assert "disk" in driver.ending.error.message


def test_a_quiet_session_is_recovered_without_a_word() -> None:
    driver = Driver()
    driver.answer("one")
    assert not driver.lose().events
    assert driver.timer_ns is None


def test_tool_rounds_are_counted_on_by_the_new_owner() -> None:
    driver = Driver(tools=[tool()], limits=limits(max_tool_rounds=1))
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.lose()
    driver.attach()
    driver.result(call_id)
    driver.begin_call()
    driver.finish("stopped")
    assert driver.ending.finish_reason == session_pb2.FINISH_REASON_TOOL_CALLS


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "survives", "ends"),
    [
        (AFTER_GRACE, True, False),
        (AFTER_GRACE, False, True),
        (CONTINUE, True, False),
        (CONTINUE, False, True),
        (CANCEL_NOW, True, True),
    ],
)
def test_a_drain_ends_what_could_not_be_resumed(action: int, survives: bool, ends: bool) -> None:
    driver = Driver(on_disconnect=policy(action))
    driver.say()
    driver.say("two", "m2")
    driver.text("one ")
    driver.drain(survives=survives)
    assert driver.live is not None
    assert driver.live.stopped == ends
    driver.finish("stopped" if ends else "stop")
    assert driver.ending.finish_reason == (DISCONNECTED if ends else STOP)
    # Nothing new is begun; whoever comes next finds the message.
    assert driver.running is None
    assert driver.session.active


@pytest.mark.parametrize("phase", ["idle", "generating", "waiting", "stopping"])
def test_a_session_is_closed_from_any_phase(phase: str) -> None:
    driver = Driver(tools=[tool()])
    if phase != "idle":
        driver.say()
        driver.text("one ")
        driver.say("two")
    if phase == "waiting":
        driver.call()
        driver.finish("tool_calls")
    if phase == "stopping":
        driver.interrupt()
    driver.close("EXPIRED")
    assert driver.of("session_closed")[0].reason == "EXPIRED"
    assert len(driver.of("turn_finished")) == len(driver.of("turn_started"))
    assert driver.timer_ns is None
    assert all(run.stopped or run.over for run in driver.runs)
    assert driver.folded().state.phase == "closed"


# --- snapshots and checkpoints -------------------------------------------------------------------


def test_a_snapshot_is_split_so_that_no_part_is_too_large() -> None:
    driver = Driver(readers=0, on_disconnect=policy(CANCEL_NOW), tools=[tool()])
    driver.attach()
    for number in range(6):
        driver.answer(str(number) * 300_000)
    driver.detach()
    for number in range(4):
        driver.say("q" * 400_000, f"q{number}")
    parts = driver.session.snapshots()
    assert len(parts) > 3
    assert all(part.ByteSize() <= 1024 * 1024 for part in parts)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert {part.seq for part in parts} == {len(driver.events)}
    assert parts[0].session == driver.session.view()
    assert [len(turn.text) for part in parts for turn in part.turns] == [300_000] * 6
    assert [one.frame_id for part in parts for one in part.queued] == ["q0", "q1", "q2", "q3"]


def test_a_snapshot_of_a_running_turn_announces_its_calls_again() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look", "m1")
    driver.think("hm")
    driver.text("one ")
    call_id = driver.call()
    driver.say("two", "m2")
    (snapshot,) = driver.session.snapshots()
    assert not snapshot.more
    assert snapshot.seq == snapshot.session.last_seq == len(driver.events)
    assert [one.call_id for one in snapshot.session.open_tool_calls] == [call_id]
    assert snapshot.session.open_tool_calls[0].deadline == driver.of("tool_call_ready")[0].deadline
    (turn,) = snapshot.turns
    assert (turn.frame_id, turn.text, turn.reasoning) == ("m1", "one ", "hm")
    assert turn.finish_reason == 0
    assert [one.frame_id for one in snapshot.queued] == ["m2"]


def _two_rounds() -> Driver:
    """An ended turn that says "one ", calls, says "two", calls twice, says "three"."""
    driver = Driver(tools=[tool()])
    driver.say()
    driver.text("one ")
    driver.result(driver.call())
    driver.finish("tool_calls")
    driver.advance(2)
    driver.text("two")
    for call_id in [driver.call(), driver.call()]:
        driver.result(call_id)
    driver.finish("tool_calls")
    driver.text("three")
    driver.finish()
    return driver


def test_a_snapshot_tells_where_calls_stood_and_where_the_time_went() -> None:
    driver = _two_rounds()
    (turn,) = driver.session.snapshots()[0].turns
    assert turn.text == "one twothree"
    assert [call.text_offset for call in turn.tool_calls] == [4, 7, 7]
    assert turn.timing == driver.ending.timing
    assert turn.timing.total == seconds(2)
    again = driver.folded(driver.session.checkpoint(), len(driver.events))
    assert again.snapshots() == driver.session.snapshots()
    driver.say()
    assert not driver.session.snapshots()[0].turns[1].HasField("timing")


def test_a_checkpoint_of_version_1_is_read_without_what_it_did_not_hold() -> None:
    driver = _two_rounds()
    data = driver.session.checkpoint()
    head, config, index, *rest = data[8:].split(b"\n")
    record = json.loads(head)
    turns = [json.loads(line) for line in rest[: record["turns"]]]
    frames = [
        [frame_id, *json.loads(line)]
        for frame_id, line in zip(json.loads(index)["frames"], rest[record["turns"] :], strict=True)
    ]
    for turn in turns:
        del turn["timing"]
        turn["calls"] = [call[:2] + call[3:] for call in turn["calls"]]
    record |= {"config": config.decode(), "turns": turns, "frames": frames}
    old = _sealed(json.dumps({**record, "version": 1}).encode())
    (turn,) = driver.folded(old, len(driver.events)).snapshots()[0].turns
    # A model writes its calls after the text of their round.
    assert [call.text_offset for call in turn.tool_calls] == [4, 7, 7]
    assert not turn.HasField("timing")
    turn.timing.CopyFrom(driver.ending.timing)
    assert turn == driver.session.snapshots()[0].turns[0]


def test_a_checkpoint_holds_all_of_the_state() -> None:
    driver, _ = busy()
    driver.say("last \U0001f600")
    driver.text("answer")
    driver.finish()
    data, at = driver.session.checkpoint(), len(driver.events)
    assert durable(driver.folded(data, at).state) == durable(driver.state)
    driver.say("more")
    driver.text("x")
    assert durable(driver.folded(data, at).state) == durable(driver.state)
    assert driver.session.quiescent is False
    with pytest.raises(ValueError, match="generating"):
        driver.session.checkpoint()


def _sealed(body: bytes) -> bytes:
    return b"%08x" % crc32(body) + body


def _changed(data: bytes, **fields: Any) -> bytes:
    head, *rest = data[8:].split(b"\n")
    changed = json.dumps({**json.loads(head), **fields}).encode()
    return _sealed(b"\n".join([changed, *rest]))


def _replaced(data: bytes, place: int, line: bytes) -> bytes:
    lines = data[8:].split(b"\n")
    lines[place] = line
    return _sealed(b"\n".join(lines))


def test_a_damaged_checkpoint_is_data_loss() -> None:
    driver = Driver()
    driver.answer("one")
    data = driver.session.checkpoint()
    half = base64.b64encode(b"\xff\xff").decode()
    for bad in (
        b"x",
        b"[]",
        b"{}",
        b"\xff" + data,
        data[:-1],
        data[: len(data) // 2],
        _changed(data, version=3),
        _changed(data, turns=2),
        _changed(data, turns="1"),
        _replaced(data, 1, half.encode()),
        _replaced(data, 2, b"{}"),
        _replaced(data, 2, b'{"calls": {"c": 1}, "dropped": [], "frames": []}'),
        _replaced(data, 2, b'{"calls": {}, "dropped": [-1], "frames": []}'),
        _replaced(data, 2, b'{"calls": {}, "dropped": [], "frames": ["f"]}'),
        _replaced(data, 3, b"{}"),
        _changed(data, queue=[["a"]]),
        # One word of the conversation has become another.
        data.replace(b'"one"', b'"two"'),
        _sealed(b"[]"),
        _sealed(b"[" * 100_000),
        _sealed(b'{"version": 3, "config": -1, "turns": [], "frames": []}'),
    ):
        assert raises_reason(partial(driver.folded, bad)) == "LOG_CORRUPT"


# --- logs that do not fold -----------------------------------------------------------------------


LOG_EVENTS = 14


def _log() -> list[event_pb2.Event]:
    driver = Driver(tools=[tool()])
    driver.say("one", "m1")
    driver.text("a", "b")
    call_id = driver.call()
    driver.progress(call_id)
    driver.result(call_id)
    driver.finish("tool_calls")
    driver.text("c")
    driver.interrupt()
    driver.finish("stopped")
    return driver.events


def test_the_log_that_is_damaged_below_has_so_many_events() -> None:
    assert len(_log()) == LOG_EVENTS


def _fold(events: list[event_pb2.Event]) -> None:
    Session.fold(None, events, ids=str)


@pytest.mark.parametrize("place", range(LOG_EVENTS))
def test_a_log_with_a_gap_or_a_repeat_does_not_fold(place: int) -> None:
    events = _log()
    _fold(events)
    if place < len(events) - 1:
        with pytest.raises(BackchannelError, match="damaged"):
            _fold(events[:place] + events[place + 1 :])
    with pytest.raises(BackchannelError, match="damaged"):
        _fold([*events[: place + 1], events[place], *events[place + 1 :]])


@pytest.mark.parametrize("place", range(LOG_EVENTS))
def test_an_event_left_out_and_the_rest_renumbered_does_not_fold_either(place: int) -> None:
    events = _log()
    optional = {"output_delta", "tool_call_delta", "tool_call_progressed"}
    if events[place].WhichOneof("kind") in optional or place == len(events) - 1:
        return
    left = events[:place] + events[place + 1 :]
    for seq, event in enumerate(left, start=1):
        event.seq = seq
    if events[place].WhichOneof("kind") == "turn_interrupted":
        # An ending without a cut is a log like any other.
        _fold(left)
        return
    with pytest.raises(BackchannelError, match="damaged"):
        _fold(left)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("output_delta", {"turn_id": "another"}),
        ("tool_call_started", {"turn_id": "another"}),
        ("tool_call_delta", {"call_id": "another"}),
        ("tool_call_ready", {"call_id": "another"}),
        ("tool_call_progressed", {"call_id": "another"}),
        ("tool_call_finished", {"call_id": "another"}),
        ("tool_call_finished", {"late": True}),
        ("turn_interrupted", {"turn_id": "another"}),
        ("turn_finished", {"turn_id": "another"}),
        ("input_accepted", {"frame_id": "another"}),
    ],
)
def test_an_event_about_something_else_does_not_fold(kind: str, fields: dict[str, Any]) -> None:
    events = _log()
    event = next(event for event in events if event.WhichOneof("kind") == kind)
    for name, value in fields.items():
        setattr(getattr(event, kind), name, value)
    assert raises_reason(lambda: _fold(events)) == "LOG_CORRUPT"


def test_a_kind_from_the_future_does_not_fold() -> None:
    assert raises_reason(lambda: _fold([event_pb2.Event(seq=1)])) == "LOG_CORRUPT"


def _too_late(event: event_pb2.Event) -> None:
    event.time.seconds = 2**62


def _before_time(event: event_pb2.Event) -> None:
    event.time.seconds = -1


def _of_a_far_round(event: event_pb2.Event) -> None:
    if kind_of(event) == "output_delta":
        event.output_delta.round = 2**31
    else:
        event.tool_call_started.round = 2**31


def _of_too_many_tokens(event: event_pb2.Event) -> None:
    if kind_of(event) == "output_delta":
        event.output_delta.token_count = 2**32 - 1
    else:
        event.tool_call_delta.token_count = 2**32 - 1


def _at_too_high_a_cost(event: event_pb2.Event) -> None:
    event.turn_finished.usage.prompt_tokens = 2**32 - 1


def _without_an_outcome(event: event_pb2.Event) -> None:
    event.tool_call_finished.outcome = session_pb2.TOOL_CALL_OUTCOME_UNSPECIFIED


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("input_accepted", _too_late),
        ("input_accepted", _before_time),
        ("output_delta", _of_a_far_round),
        ("tool_call_started", _of_a_far_round),
        ("output_delta", _of_too_many_tokens),
        ("tool_call_delta", _of_too_many_tokens),
        ("turn_finished", _at_too_high_a_cost),
        ("tool_call_finished", _without_an_outcome),
    ],
)
def test_what_cannot_be_does_not_fold(kind: str, damage: Callable[[event_pb2.Event], None]) -> None:
    driver = Driver(tools=[tool()])
    driver.answer("one")
    driver.say("two")
    driver.call()
    driver.finish("tool_calls")
    driver.result(driver.turns[-1].calls[0].call_id)
    driver.text("done")
    driver.finish()
    place = max(place for place, event in enumerate(driver.events) if kind_of(event) == kind)
    event = event_pb2.Event.FromString(driver.log[place])
    damage(event)
    driver.log[place] = event.SerializeToString()
    assert raises_reason(driver.folded) == "LOG_CORRUPT"


def test_a_result_in_the_log_that_is_no_json_is_damage() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    driver.result(driver.call(), json="[1]")
    event = event_pb2.Event.FromString(driver.log[-1])
    event.tool_call_finished.result.json = "[1"
    driver.log[-1] = event.SerializeToString()
    assert raises_reason(driver.lose) == "LOG_CORRUPT"


def test_a_deadline_after_all_time_is_shown_as_the_last_moment() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    driver.call()
    event = event_pb2.Event.FromString(driver.log[-1])
    event.tool_call_ready.deadline.seconds = 2**62
    driver.log[-1] = event.SerializeToString()
    shown = driver.folded().view().open_tool_calls[0].deadline
    assert shown.ToJsonString() == "9999-12-31T23:59:59.999999999Z"


def test_what_is_cut_after_one_checkpoint_is_cut_in_the_next() -> None:
    driver = Driver()
    driver.answer("all", " of it")
    first, at_seq = driver.session.checkpoint(), len(driver.events)
    driver.lose(checkpoint=first, at_seq=at_seq)
    driver.attach()
    driver.interrupt(displayed_offset=3)
    driver.answer("more")
    second, at_seq = driver.session.checkpoint(), len(driver.events)
    assert durable(driver.folded(second, at_seq).state) == durable(driver.folded().state)
