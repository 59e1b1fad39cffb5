"""The core and the reference, driven by the same random schedules, say the same of everything.

A schedule is a list of steps; what a step does is chosen by the state that the steps before have
led to. Frames are sent, held back, sent again and out of order; an engine speaks, calls, ends and
fails; time passes; readers come and go; the process is lost together with the appends that had
not been committed yet.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from backchannel.errors import reason_of
from backchannel.session.decision import Decision, HoldEngine, StartEngine, StopEngine
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.scale import scale
from tests.unit.session.driver import (
    REASONING,
    SECOND,
    TEXT,
    Driver,
    kind_of,
    limits,
    policy,
    seconds,
    tool,
    user,
)
from tests.unit.session.promises import check_folds, result_told
from tests.unit.session.reference import Config, Durable, Frame, Reference, Tool

# Random, and so as long as the machine lets it be.
pytestmark = pytest.mark.timeout(scale(300, 3600))

TOOLS = {
    "look": Tool(idle=3 * SECOND, timeout=8 * SECOND),
    "stay": Tool(idle=6 * SECOND, timeout=6 * SECOND, let_finish=True, side_effect="IRREVERSIBLE"),
    "bg": Tool(blocking=False, idle=4 * SECOND, timeout=9 * SECOND, side_effect="IDEMPOTENT"),
}
PIECES = ["word", " more", ".", ". ", "!", "line\n", "\U0001f600 e\u0301", "", " ", "what? "]
ARGUMENTS = ["{}", "{}", '{"x":2}', '{"x":2}', "", "[1]", "{oops"]
OUTCOMES: list[dict[str, Any]] = [
    {"json": "1"},
    {"json": '{"n": "\u00e9"}'},
    {"content": "seen"},
    {"error": "broken"},
]
STEPS = (
    *("nothing", "say", "say", "say", "steer", "steer", "interrupt_by", "interrupt", "ack", "ack"),
    *("text",) * 10,
    *("think", "begin_call", "fragment", "end_call", "round", "round", "round", "round", "finish"),
    *("finish", "fail", "dead", "wait", "wait", "due", "readers", "readers", "result", "result"),
    *("result", "result", "partial", "progress", "again", "reuse", "held", "held", "deliver"),
    *("deliver", "lose", "drain", "close", "twice", "ping"),
)


class Dice:
    """One number, from which a step takes its choices."""

    def __init__(self, number: int) -> None:
        self.number = number

    def of(self, choices: Any) -> Any:
        self.number, at = divmod(self.number, len(choices))
        return choices[at]

    def one_in(self, count: int) -> bool:
        return bool(self.of([False] * (count - 1) + [True]))


def enum(value: str, prefix: str) -> str:
    return "" if value.endswith("UNSPECIFIED") else value.removeprefix(prefix)


def of_event(event: event_pb2.Event) -> dict[str, Any]:
    """An event of the core in the reference's words."""
    kind = kind_of(event)
    fields: dict[str, Any] = {"kind": kind, "by": event.frame_id}
    body = getattr(event, kind)
    if hasattr(body, "turn_id"):
        fields["turn"] = body.turn_id
    if hasattr(body, "call_id"):
        fields["call"] = body.call_id
    match kind:
        case "input_accepted":
            delivery = session_pb2.Delivery.Name(body.message.delivery)
            fields["delivery"] = enum(delivery, "DELIVERY_") or "QUEUE"
            fields["text"] = body.message.parts[0].text
            fields["frame"] = body.frame_id
        case "input_withdrawn":
            fields["frame"] = body.frame_id
        case "turn_started":
            fields |= {"frames": list(body.frame_ids), "calls": list(body.call_ids)}
        case "output_delta":
            channel = event_pb2.Channel.Name(body.channel).removeprefix("CHANNEL_")
            fields |= {"channel": channel, "text": body.text, "offset": body.offset}
            fields |= {"tokens": body.token_count, "round": body.round}
        case "tool_call_started":
            fields |= {"name": body.name, "round": body.round}
        case "tool_call_delta":
            fields |= {"text": body.arguments_fragment, "tokens": body.token_count}
        case "tool_call_ready":
            fields |= {"name": body.name, "arguments": body.arguments_json}
            fields["idle"] = body.idle_deadline.ToNanoseconds()
            fields["end"] = body.deadline.ToNanoseconds()
        case "tool_call_progressed":
            fields |= {"note": body.note, "idle": body.idle_deadline.ToNanoseconds()}
        case "tool_call_output":
            content = "".join(part.text for part in body.content.parts)
            fields |= {"index": body.index, "idle": body.idle_deadline.ToNanoseconds()}
            fields |= {"json": body.json, "content": content if body.HasField("content") else None}
        case "tool_call_cancelled":
            fields["reason"] = body.reason
        case "tool_call_finished":
            outcome = session_pb2.ToolCallOutcome.Name(body.outcome)
            fields["outcome"] = enum(outcome, "TOOL_CALL_OUTCOME_")
            fields |= {"late": body.late, "says": result_told(body)}
            fields["when"] = enum(session_pb2.Scheduling.Name(body.scheduling), "SCHEDULING_")
        case "turn_interrupted":
            fields |= {"frame": body.frame_id, "kept": body.kept_chars}
            fields |= {"dropped": body.dropped_chars}
            fields["keep"] = enum(event_pb2.Keep.Name(body.keep), "KEEP_")
            fields["tools"] = [
                (
                    one.call_id,
                    one.name,
                    enum(session_pb2.ToolOutcome.State.Name(one.state), "STATE_"),
                    enum(session_pb2.SideEffect.Name(one.side_effect), "SIDE_EFFECT_"),
                )
                for one in body.tools
            ]
        case "turn_truncated":
            fields |= {"frame": body.frame_id, "kept": body.kept_chars}
            fields |= {"dropped": body.dropped_chars}
        case "turn_recovered":
            fields["from_seq"] = body.from_seq
        case "turn_finished":
            fields["reason"] = enum(
                session_pb2.FinishReason.Name(body.finish_reason), "FINISH_REASON_"
            )
            fields["error"] = reason_of(body.error) if body.HasField("error") else ""
            for name in ("delivered", "wasted", "generated", "kept", "displayed", "prompt"):
                fields[name] = getattr(body.usage, f"{name}_tokens")
            fields["cached"] = body.usage.cached_prompt_tokens
            fields["estimated"] = body.usage.estimated
            fields["total"] = body.timing.total.ToNanoseconds()
            fields["paused"] = body.timing.paused.ToNanoseconds()
        case "session_closed":
            fields["reason"] = body.reason
    return fields


def of_effects(decision: Decision) -> list[tuple[Any, ...]]:
    """What is to be done, but for the timer."""
    said: list[tuple[Any, ...]] = []
    for effect in decision.effects:
        match effect:
            case StartEngine():
                told: list[tuple[Any, ...]] = []
                for one in effect.messages:
                    role = session_pb2.Role.Name(one.role).removeprefix("ROLE_")
                    text = "".join(part.text for part in one.parts)
                    calls = [(c.call_id, c.name, c.arguments_json) for c in one.tool_calls]
                    told.append((role, text, one.call_id if role == "TOOL" else calls))
                most = effect.sampling
                left = most.max_tokens if most.HasField("max_tokens") else None
                said.append(
                    ("start", effect.run_id, effect.turn_id, told, left, effect.continue_text)
                )
            case StopEngine(run_id):
                said.append(("stop", run_id))
            case HoldEngine(run_id, hold):
                said.append(("hold", run_id, hold))
    return said


def of_receipt(receipt: frame_pb2.Receipt | None) -> dict[str, Any] | None:
    if receipt is None:
        return None
    return {
        "status": frame_pb2.ReceiptStatus.Name(receipt.status).removeprefix("RECEIPT_STATUS_"),
        "seq": receipt.seq,
        "turn": receipt.turn_id,
        "delivery": enum(session_pb2.Delivery.Name(receipt.delivery), "DELIVERY_"),
        "error": reason_of(receipt.error) if receipt.HasField("error") else "",
    }


def of_frame(frame: Frame) -> frame_pb2.ClientFrame:
    """The same frame for the core."""
    made = frame_pb2.ClientFrame(frame_id=frame.id)
    match frame.kind:
        case "message":
            made.message.CopyFrom(
                user(
                    frame.text,
                    delivery=session_pb2.Delivery.Value(f"DELIVERY_{frame.delivery}"),
                    expected_turn_id=frame.turn,
                    displayed_seq=frame.seq,
                    displayed_offset=frame.offset,
                )
            )
            if frame.max_tokens is not None:
                made.message.sampling.max_tokens = frame.max_tokens
        case "interrupt":
            made.interrupt.CopyFrom(
                frame_pb2.Interrupt(
                    turn_id=frame.turn,
                    target_frame_id=frame.target,
                    displayed_seq=frame.seq,
                    displayed_offset=frame.offset,
                    keep=event_pb2.Keep.Value(f"KEEP_{frame.keep}"),
                )
            )
            if frame.tools:
                made.interrupt.tools = session_pb2.ToolDisposition.Value(
                    f"TOOL_DISPOSITION_{frame.tools}"
                )
        case "ack":
            made.ack.CopyFrom(frame_pb2.Ack(displayed_seq=frame.seq, displayed_offset=frame.offset))
        case "result":
            result = made.tool_result
            result.call_id, result.partial = frame.call, frame.partial
            if frame.error is not None:
                result.error.message = frame.error
            elif frame.content is not None:
                result.content.parts.add(text=frame.content)
            else:
                result.json = frame.json
            if frame.scheduling:
                result.scheduling = session_pb2.Scheduling.Value(f"SCHEDULING_{frame.scheduling}")
        case "progress":
            made.tool_progress.call_id, made.tool_progress.note = frame.call, frame.text
        case "ping":
            made.ping.SetInParent()
    return made


class Counting(Driver):
    """Hands out the ids that the reference counts."""

    def new_id(self, prefix: str) -> str:
        counts: dict[str, int] = self.__dict__.setdefault("counts", {})
        counts[prefix] = counts.get(prefix, 0) + 1
        return f"{prefix[0].upper()}{counts[prefix]}"


class Both:
    """The core and the reference, side by side."""

    def __init__(self, config: Config, readers: int) -> None:
        graceful = config.policy == "CANCEL_AFTER_GRACE"
        self.config = config
        self.driver = Counting(
            readers=0,
            tools=[
                tool(
                    name,
                    blocking=one.blocking,
                    idle_timeout=seconds(one.idle / SECOND),
                    timeout=seconds(one.timeout / SECOND),
                    on_interrupt=2 if one.let_finish else 0,
                    side_effect=session_pb2.SideEffect.Value(f"SIDE_EFFECT_{one.side_effect}"),
                )
                for name, one in config.tools.items()
            ],
            limits=limits(
                max_turn_duration=seconds(config.turn / SECOND),
                max_tool_rounds=config.rounds,
                max_queued_messages=config.queued,
                max_unacked_chars=config.window,
                max_steer_tokens=config.steer_tokens,
                max_steer_delay=seconds(config.steer_delay / SECOND),
            ),
            sampling=session_pb2.Sampling(max_tokens=config.max_tokens),
            on_disconnect=policy(
                session_pb2.DisconnectPolicy.Action.Value(f"ACTION_{config.policy}"),
                config.grace / SECOND if graceful else None,
            ),
        )
        self.model = Reference(config, self.driver.now_ns)
        self.frames: list[Frame] = []
        self.in_flight: list[Frame] = []
        self.names = 0
        # (how many events were in the log, what it said): where a lost process may have got to.
        self.committed: list[tuple[int, Durable]] = []
        self.same()
        if readers:
            self.readers(readers)

    # --- one input -----------------------------------------------------------------------------

    def same(self) -> None:
        """What the last input led to is the same for both."""
        driver, model = self.driver, self.model
        decision = driver.decisions[-1]
        found = [of_event(event) for event in decision.events]
        if found != model.events:
            for core, reference in zip([*found, None], [*model.events, None], strict=False):
                if core != reference:
                    raise AssertionError(f"core:      {core}\nreference: {reference}")
            raise AssertionError(
                f"core:      {found[len(model.events) :]}\nreference: {model.events[len(found) :]}"
            )
        pairs: list[tuple[Any, Any]] = [
            (of_effects(decision), model.effects),
            (of_receipt(decision.receipt), model.receipt),
        ]
        for said, expected in pairs:
            assert said == expected, f"core:      {said}\nreference: {expected}"
        assert driver.timer_ns == model.due(), (
            driver.timer_ns and (driver.timer_ns - driver.now_ns) / SECOND,
            sorted(((at - driver.now_ns) / SECOND, what) for at, what, _ in model.dues()),
        )
        if decision.events or not self.committed:
            self.committed.append((len(driver.log), model.remember()))
            del self.committed[:-4]

    @property
    def run(self) -> Any:
        """The engine at work, unless the host makes it wait."""
        live = self.driver.live
        return None if live is None or (live.held and not live.stopped) else live

    def send(self, frame: Frame) -> None:
        note(f"  {frame}")
        self.frames.append(frame)
        self.driver.send(of_frame(frame))
        self.model.frame(frame, self.driver.now_ns)
        self.same()

    def tick(self) -> None:
        self.driver.timer_ns = None
        self.driver.tick()
        self.model.tick(self.driver.now_ns)
        if self.driver.timer_ns is None:
            self.driver.timer_ns = self.model.due()
            assert self.driver.timer_ns is None
        self.same()

    def pass_time(self, span: int) -> None:
        driver = self.driver
        until = driver.now_ns + span
        for _ in range(1_000):
            if driver.timer_ns is None or driver.timer_ns > until:
                break
            driver.now_ns = max(driver.now_ns, driver.timer_ns)
            self.tick()
        else:
            raise AssertionError("the timer goes off again and again")
        driver.now_ns = until

    def readers(self, count: int) -> None:
        self.driver.attach(count)
        self.model.readers_changed(count, self.driver.now_ns)
        self.same()

    def speak(self, text: str, tokens: int, channel: int) -> None:
        run = self.run
        self.driver.text(text, tokens=tokens, channel=channel, run=run)
        name = "TEXT" if channel == TEXT else "REASONING"
        self.model.text(run.run_id, name, text, tokens, self.driver.now_ns)
        self.same()

    def begin_call(self, name: str) -> int:
        run = self.run
        index = self.driver.begin_call(name, run)
        self.model.call_started(run.run_id, index, name, self.driver.now_ns)
        self.same()
        return index

    def fragment(self, index: int, text: str, tokens: int) -> None:
        run = self.run
        self.driver.fragment(index, text, tokens, run)
        self.model.call_fragment(run.run_id, index, text, tokens, self.driver.now_ns)
        self.same()

    def end_call(self, index: int) -> None:
        run = self.run
        self.driver.end_call(index, run)
        self.model.call_ready(run.run_id, index, self.driver.now_ns)
        self.same()

    def finish(self, cause: str, silent: int, sure: bool = True) -> None:
        run = self.run
        total = run.computed + silent if sure else None
        self.driver.finish(cause, silent=silent, output_tokens=total, run=run)
        self.model.finished(run.run_id, cause, 10, 4, total, self.driver.now_ns)
        self.same()

    # --- steps: clients ------------------------------------------------------------------------

    def name(self, dice: Dice) -> str:
        self.names += 1
        return "" if dice.one_in(6) else f"f{self.names}"

    def position(self, dice: Dice) -> dict[str, Any]:
        last = self.model.last
        seq = self.model.log.seq
        ends = [max(0, seq - back) for back in (0, 1, 2, 3, 5, 8)]
        fields: dict[str, Any] = {"seq": dice.of([0, 0, *ends, *ends, seq + 1])}
        length = len(last.text) if last else 0
        fields["offset"] = dice.of(
            [*[None] * 6, 0, length // 2, length // 2, length, length, length + 1]
        )
        return fields

    def message(self, dice: Dice, delivery: str) -> Frame:
        turn = self.model.last
        return Frame(
            self.name(dice),
            "message",
            text=dice.of(["one", "two"]),
            delivery=delivery,
            turn=dice.of([*[""] * 8, turn.id if turn else "", turn.id if turn else "", "T1"]),
            max_tokens=dice.of([None, None, None, 3]),
            **(self.position(dice) if dice.one_in(2) else {}),
        )

    def say(self, dice: Dice) -> None:
        self.send(self.message(dice, "QUEUE"))

    def steer(self, dice: Dice) -> None:
        self.send(self.message(dice, "STEER"))

    def interrupt_by(self, dice: Dice) -> None:
        self.send(self.message(dice, "INTERRUPT"))

    def stop(self, dice: Dice) -> Frame:
        turns, queue = self.model.log.turns, self.model.log.queue
        by = dice.of(["last", "last", "turn", "frame", "queued", "sent"])
        to: dict[str, Any] = {"turn": "never"}
        if by == "last" and turns:
            to = {"turn": turns[-1].id}
        elif by == "turn" and turns:
            to = {"turn": dice.of(turns).id}
        elif by == "frame" and turns and turns[-1].inputs:
            to = {"target": dice.of(turns[-1].inputs).id or "x"}
        elif by == "queued" and queue:
            to = {"target": dice.of(queue).id or "x"}
        elif by == "sent" and self.frames:
            to = {"target": dice.of(self.frames).id or "x"}
        keep = dice.of(["DISPLAYED", "DISPLAYED", "GENERATED", "NOTHING"])
        tools = dice.of(["", "CANCEL", "LET_FINISH"])
        name = self.name(dice)
        return Frame(name, "interrupt", keep=keep, tools=tools, **to, **self.position(dice))

    def interrupt(self, dice: Dice) -> None:
        self.send(self.stop(dice))

    def acked(self, dice: Dice) -> Frame:
        return Frame(self.name(dice), "ack", **self.position(dice))

    def ack(self, dice: Dice) -> None:
        self.send(self.acked(dice))

    def ping(self, dice: Dice) -> None:
        self.send(Frame(self.name(dice), "ping"))

    def pick_call(self, dice: Dice) -> str:
        calls = list(self.model.log.calls.values())
        open_calls = [one for one in calls if one.open]
        if not calls or dice.one_in(30):
            return "never"
        return str(dice.of(calls if not open_calls or dice.one_in(4) else open_calls).id)

    def outcome(self, dice: Dice) -> Frame:
        return Frame(
            self.name(dice),
            "result",
            call=self.pick_call(dice),
            scheduling=dice.of(["", "", "WHEN_IDLE", "INTERRUPT", "SILENT"]),
            **dice.of(OUTCOMES),
        )

    def result(self, dice: Dice) -> None:
        if self.model.log.calls:
            self.send(self.outcome(dice))

    def partial(self, dice: Dice) -> None:
        if self.model.log.calls:
            what = dice.of(OUTCOMES[:3])
            frame = Frame(self.name(dice), "result", call=self.pick_call(dice), **what)
            self.send(Frame(**{**frame.__dict__, "partial": True}))

    def progress(self, dice: Dice) -> None:
        if self.model.log.calls:
            name, note_ = self.name(dice), dice.of(["on", "its", "way"])
            self.send(Frame(name, "progress", call=self.pick_call(dice), text=note_))

    def again(self, dice: Dice) -> None:
        """A frame comes a second time, perhaps long after."""
        if self.frames:
            self.send(dice.of(self.frames[-12:]))

    def reuse(self, dice: Dice) -> None:
        """Another frame has the id of one that was sent."""
        if self.frames:
            self.send(Frame(dice.of(self.frames[-6:]).id, "message", text="something else"))

    def held(self, dice: Dice) -> None:
        """A frame is sent and does not arrive yet."""
        make = dice.of(["say", "steer", "interrupt", "result", "ack", "interrupt_by"])
        if make == "interrupt":
            frame = self.stop(dice)
        elif make == "ack":
            frame = self.acked(dice)
        elif make == "result":
            frame = self.outcome(dice)
        else:
            delivery = {"say": "QUEUE", "steer": "STEER", "interrupt_by": "INTERRUPT"}[make]
            frame = self.message(dice, delivery)
        self.in_flight.append(frame)

    def deliver(self, dice: Dice) -> None:
        """It arrives, not in the order in which it was sent."""
        if self.in_flight:
            self.send(self.in_flight.pop(dice.of(range(len(self.in_flight)))))

    # --- steps: engines ------------------------------------------------------------------------

    def text(self, dice: Dice) -> None:
        if self.run:
            if dice.one_in(4):
                self.driver.admit()
                self.same_again()
            self.speak(dice.of(PIECES), dice.of([1, 1, 2, 0]), TEXT)

    def same_again(self) -> None:
        assert not self.driver.decisions[-1].events

    def think(self, dice: Dice) -> None:
        if self.run:
            self.speak(dice.of(PIECES), dice.of([1, 0, 2]), REASONING)

    def begin_call_(self, dice: Dice) -> None:
        if self.run:
            self.begin_call(dice.of([*self.config.tools, *self.config.tools, "nope"]))

    def fragment_(self, dice: Dice) -> None:
        if self.run and self.run.written:
            index = dice.of(self.run.written)
            self.fragment(index, dice.of(["{", '"a":', "}", ""]), dice.of([1, 0, 2]))

    def end_call_(self, dice: Dice) -> None:
        if self.run and self.run.written:
            self.end_call(dice.of(self.run.written))

    def round(self, dice: Dice) -> None:
        """A whole call or two, and perhaps the end of the round."""
        if self.run is None or self.run.stopped or self.run.written:
            return
        for _ in range(dice.of([1, 1, 2])):
            if self.run is None or self.run.stopped:
                return
            index = self.begin_call(dice.of(list(self.config.tools)))
            if index in self.run.written:
                self.fragment(index, dice.of(ARGUMENTS), 2)
                self.end_call(index)
        if self.run and not self.run.stopped and not dice.one_in(3):
            self.finish("tool_calls", dice.of([0, 1]))

    def finish_(self, dice: Dice) -> None:
        run = self.run
        if run is None:
            return
        causes = ["stop", "stop", "stop", "length", "tool_calls", "content_filter"]
        causes += ["stopped"] if dice.one_in(8) else []
        cause = "stopped" if run.stopped else dice.of(causes)
        self.finish(cause, dice.of([0, 0, 1, 2]), sure=not dice.one_in(8))

    def fail(self, dice: Dice) -> None:
        if self.run and dice.one_in(2):
            run = self.run
            self.driver.fail(run=run)
            self.model.failed(run.run_id, "ENGINE_FAILED", self.driver.now_ns)
            self.same()

    def dead(self, dice: Dice) -> None:
        """An engine to which nobody listens any more says something."""
        gone = [run for run in self.driver.runs if run is not self.driver.live]
        if gone:
            run = dice.of(gone)
            self.driver.take(
                self.driver.session.engine_text(run.run_id, TEXT, "x", 1, (), self.driver.now_ns)
            )
            self.model.text(run.run_id, "TEXT", "x", 1, self.driver.now_ns)
            self.same()

    # --- steps: time, readers, losses ------------------------------------------------------------

    def wait(self, dice: Dice) -> None:
        self.pass_time(round(dice.of([0.1, 0.4, 0.4, 1.0, 2.5, 6.0]) * SECOND))

    def due(self, dice: Dice) -> None:
        """To the very moment of what is due next."""
        if self.driver.timer_ns is not None:
            self.pass_time(self.driver.timer_ns - self.driver.now_ns)

    def readers_(self, dice: Dice) -> None:
        self.readers(dice.of([0, 0, 1, 1, 2]))

    def drain(self, dice: Dice) -> None:
        if dice.one_in(6):
            survives = not dice.one_in(2)
            self.driver.drain(survives=survives)
            self.model.drain(survives, self.driver.now_ns)
            self.same()

    def close(self, dice: Dice) -> None:
        if dice.one_in(12):
            self.driver.close()
            self.model.close("DELETED", self.driver.now_ns)
            self.same()

    def lose(self, dice: Dice) -> None:
        """The process is lost, with the last few appends if they had not been committed."""
        if dice.one_in(2):
            return
        away = dice.of([0, SECOND // 2, 7 * SECOND, 60 * SECOND])
        continues = dice.one_in(2)
        back = dice.of([1, 1, 1, 2, 3])
        count, log = self.committed[-min(back, len(self.committed))]
        note(f"  lost at {count} of {len(self.driver.log)}, away {away}, continues {continues}")
        del self.driver.log[count:]
        del self.driver.events[count:]
        self.committed = [one for one in self.committed if one[0] <= count]
        self.driver.lose(away_s=away / SECOND, engine_continues=continues)
        self.model.lose(log, self.driver.now_ns, continues=continues)
        self.same()

    def twice(self, dice: Dice) -> None:
        """The same frame is delivered twice in a row."""
        if self.frames:
            frame = dice.of(self.frames[-3:])
            self.send(frame)
            self.send(frame)

    def step(self, name: str, number: int) -> None:
        if name == "nothing":
            return
        note(f"{name} {number}")
        before = len(self.driver.events)
        do = getattr(self, f"{name}_", None) or getattr(self, name)
        do(Dice(number))
        for event in self.driver.events[before:]:
            note(f"    {event.seq} {json.dumps(of_event(event), default=str)}")

    def end(self) -> None:
        """In the end everything ends, for both at the same moment."""
        self.readers(0)
        self.pass_time(3600 * SECOND)
        check_folds(self.driver, {}, None)


CONFIGS = st.builds(
    Config,
    tools=st.just(TOOLS),
    policy=st.sampled_from(["CANCEL_AFTER_GRACE", "CANCEL_AFTER_GRACE", "CONTINUE", "CANCEL_NOW"]),
    grace=st.sampled_from([5 * SECOND, 5 * SECOND, 0]),
    turn=st.just(20 * SECOND),
    rounds=st.sampled_from([8, 8, 8, 1, 0]),
    queued=st.sampled_from([3, 1]),
    window=st.sampled_from([None, None, 4]),
    steer_tokens=st.sampled_from([64, 4]),
    steer_delay=st.just(3 * SECOND),
    max_tokens=st.sampled_from([None, None, 12]),
)
# A list of a given length shrinks to steps that do nothing.
SCHEDULES = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, (1 << 32) - 1)), min_size=50, max_size=50
)


@settings(max_examples=scale(400, 10_000))
@given(CONFIGS, st.sampled_from([1, 1, 2, 0]), SCHEDULES)
def test_the_core_does_what_the_reference_says(
    config: Config, readers: int, schedule: list[tuple[str, int]]
) -> None:
    both = Both(config, readers)
    for name, number in schedule:
        both.step(name, number)
    both.end()
