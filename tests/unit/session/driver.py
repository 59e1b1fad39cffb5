"""Plays whoever stands around a session: the clock, the engine, the readers, the log.

Everything is turned by hand. The log is a list of serialised events, so that whatever is folded
from it has been through bytes. Effects are judged as they come: an engine is started only when
none is at work, and only the one at work is stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.duration_pb2 import Duration

from backchannel.errors import BackchannelError, Reason, reason_of
from backchannel.session.configuration import config_digest, effective_config
from backchannel.session.decision import Decision, HoldEngine, SetTimer, StartEngine, StopEngine
from backchannel.session.session import Session
from backchannel.session.state import SessionState
from backchannel.session.transcript import messages
from backchannel.session.turn import Turn
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

SECOND = 1_000_000_000
MS = 1_000_000
START_NS = 1_700_000_000 * SECOND
SESSION_ID = "a-session-for-tests-0001"

TEXT = event_pb2.CHANNEL_TEXT
REASONING = event_pb2.CHANNEL_REASONING
ACCEPTED = frame_pb2.RECEIPT_STATUS_ACCEPTED
DUPLICATE = frame_pb2.RECEIPT_STATUS_DUPLICATE
STALE = frame_pb2.RECEIPT_STATUS_STALE
REJECTED = frame_pb2.RECEIPT_STATUS_REJECTED
STOP = session_pb2.FINISH_REASON_STOP
LENGTH = session_pb2.FINISH_REASON_LENGTH
TOOL_CALLS = session_pb2.FINISH_REASON_TOOL_CALLS
INTERRUPTED = session_pb2.FINISH_REASON_INTERRUPTED
DISCONNECTED = session_pb2.FINISH_REASON_DISCONNECTED
DEADLINE = session_pb2.FINISH_REASON_DEADLINE
ERROR = session_pb2.FINISH_REASON_ERROR
OWNER_LOST = session_pb2.FINISH_REASON_OWNER_LOST
CONTENT_FILTER = session_pb2.FINISH_REASON_CONTENT_FILTER
INTERRUPT = session_pb2.DELIVERY_INTERRUPT
CONTINUE = session_pb2.DisconnectPolicy.ACTION_CONTINUE
CANCEL_NOW = session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW
AFTER_GRACE = session_pb2.DisconnectPolicy.ACTION_CANCEL_AFTER_GRACE
COMPLETED = session_pb2.TOOL_CALL_OUTCOME_COMPLETED
FAILED = session_pb2.TOOL_CALL_OUTCOME_FAILED
TIMED_OUT = session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT
CANCELLED = session_pb2.TOOL_CALL_OUTCOME_CANCELLED


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(value * SECOND))
    return duration


def tool(name: str = "look", **fields: Any) -> session_pb2.ToolSpec:
    return session_pb2.ToolSpec(name=name, **fields)


def limits(**fields: Any) -> session_pb2.Limits:
    return session_pb2.Limits(**fields)


def policy(action: int, grace_s: float | None = None) -> session_pb2.DisconnectPolicy:
    return session_pb2.DisconnectPolicy(
        action=session_pb2.DisconnectPolicy.Action.ValueType(action),
        grace=None if grace_s is None else seconds(grace_s),
    )


def user(text: str, **fields: Any) -> session_pb2.UserMessage:
    return session_pb2.UserMessage(parts=[session_pb2.Part(text=text)], **fields)


def kind_of(event: event_pb2.Event) -> str:
    return event.WhichOneof("kind") or ""


@dataclass
class Run:
    """An engine at work on one question, with its own count of what it has computed."""

    asked: StartEngine
    computed: int = 0
    stopped: bool = False
    stopped_ns: int = 0
    held: bool = False
    over: bool = False
    indexes: Iterable[int] = field(default_factory=itertools.count)
    written: list[int] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return self.asked.run_id


class Driver:
    """A session and its surroundings."""

    def __init__(
        self,
        *,
        readers: int = 1,
        tools: Iterable[session_pb2.ToolSpec] = (),
        frame_id: str = "",
        **config: Any,
    ) -> None:
        self.now_ns = START_NS
        self.log: list[bytes] = []
        self.events: list[event_pb2.Event] = []
        self.decisions: list[Decision] = []
        self.runs: list[Run] = []
        self.live: Run | None = None
        self.timer_ns: int | None = None
        self.readers = 0
        self._numbers = itertools.count(1)
        sent = session_pb2.SessionConfig(tools=tools, **config)
        self.config = effective_config(sent, model="scripted/echo", session_id=SESSION_ID)
        self.session, decision = Session.create(
            self.config,
            session_id=SESSION_ID,
            config_digest=config_digest(sent),
            frame_id=frame_id,
            now_ns=self.now_ns,
            ids=self.new_id,
        )
        self.take(decision)
        if readers:
            self.attach(readers)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers)}"

    # --- what the host does ------------------------------------------------------------------

    def take(self, decision: Decision) -> Decision:
        """Append the events, perform the effects."""
        for event in decision.events:
            raw = event.SerializeToString()
            self.log.append(raw)
            self.events.append(event_pb2.Event.FromString(raw))
            if kind_of(event) == "turn_finished" and self.live is not None:
                # Ended without a confirmation: nobody listens to that engine any more.
                self.live = None
        for effect in decision.effects:
            match effect:
                case StartEngine():
                    assert self.live is None, "an engine is started while another is at work"
                    assert self.running is not None
                    assert self.running.turn_id == effect.turn_id
                    self._check_prompt(effect)
                    self.live = Run(effect)
                    self.runs.append(self.live)
                case StopEngine(run_id):
                    told = next(run for run in self.runs if run.run_id == run_id)
                    assert not told.over, "an engine that has ended is told to stop"
                    if not told.stopped:
                        told.stopped, told.stopped_ns = True, self.now_ns
                case HoldEngine(run_id, hold):
                    held = next(run for run in self.runs if run.run_id == run_id)
                    assert held.held != hold, "an engine is held twice, or let go that was not held"
                    held.held = hold
                case SetTimer(at_ns):
                    self.timer_ns = at_ns
        self.decisions.append(decision)
        return decision

    def _check_prompt(self, asked: StartEngine) -> None:
        """What is kept of a prompt for the next one makes it no other, to the byte."""
        anew = messages(replace(self.state, settled=None))
        told = anew[:-1] if asked.continue_text else anew
        assert [one.SerializeToString() for one in asked.messages] == [
            one.SerializeToString() for one in told
        ], "the prompt is not what the events say"

    def tick(self) -> Decision:
        return self.take(self.session.tick(self.now_ns))

    def advance(self, span_s: float) -> list[event_pb2.Event]:
        """Let time pass, the timer going off whenever it is due; returns what that led to."""
        before, until_ns = len(self.events), self.now_ns + round(span_s * SECOND)
        for _ in range(10_000):
            if self.timer_ns is None or self.timer_ns > until_ns:
                break
            self.now_ns = max(self.now_ns, self.timer_ns)
            self.timer_ns = None
            self.tick()
        else:
            raise AssertionError("the timer goes off again and again")
        self.now_ns = until_ns
        return self.events[before:]

    def attach(self, readers: int = 1) -> Decision:
        self.readers = readers
        return self.take(self.session.readers_changed(readers, self.now_ns))

    def detach(self) -> Decision:
        return self.attach(0)

    def drain(self, *, survives: bool = True) -> Decision:
        return self.take(self.session.drain(self.now_ns, survives=survives))

    def close(self, reason: str = "DELETED") -> Decision:
        return self.take(self.session.close(reason, self.now_ns))

    def lose(
        self,
        *,
        checkpoint: bytes | None = None,
        at_seq: int = 0,
        away_s: float = 0,
        lost: BackchannelError | None = None,
        engine_continues: bool = False,
    ) -> Decision:
        """The process dies, and another one reads the log."""
        self.now_ns += round(away_s * SECOND)
        self.session = self.folded(checkpoint, at_seq)
        for run in self.runs:
            run.over = True
        self.live, self.timer_ns, self.readers = None, None, 0
        return self.take(self.session.recover(self.now_ns, lost, engine_continues=engine_continues))

    def folded(self, checkpoint: bytes | None = None, at_seq: int = 0) -> Session:
        """What another process would make of the log now."""
        events = (event_pb2.Event.FromString(raw) for raw in self.log[at_seq:])
        return Session.fold(checkpoint, events, ids=self.new_id)

    # --- what clients do ---------------------------------------------------------------------

    def send(self, frame: frame_pb2.ClientFrame) -> frame_pb2.Receipt:
        decision = self.take(self.session.accept(frame, self.now_ns))
        assert decision.receipt is not None
        return decision.receipt

    def frame(self, frame_id: str | None = None, **kind: Any) -> frame_pb2.Receipt:
        """Send a frame; it gets an id of its own unless one is given."""
        if frame_id is None:
            frame_id = self.new_id("frame")
        return self.send(frame_pb2.ClientFrame(frame_id=frame_id, **kind))

    def say(
        self, text: str = "Hello", frame_id: str | None = None, **fields: Any
    ) -> frame_pb2.Receipt:
        return self.frame(frame_id, message=user(text, **fields))

    def interrupt(
        self, turn_id: str | None = None, frame_id: str | None = None, **fields: Any
    ) -> frame_pb2.Receipt:
        """Stop the last turn, or the one that is named."""
        if turn_id is None:
            turn_id = "" if "target_frame_id" in fields else self.turns[-1].turn_id
        return self.frame(frame_id, interrupt=frame_pb2.Interrupt(turn_id=turn_id, **fields))

    def ack(self, seq: int = 0, offset: int | None = None, **more: Any) -> frame_pb2.Receipt:
        return self.frame(ack=frame_pb2.Ack(displayed_seq=seq, displayed_offset=offset), **more)

    def result(
        self, call_id: str, frame_id: str | None = None, **outcome: Any
    ) -> frame_pb2.Receipt:
        if not outcome:
            outcome = {"json": "1"}
        return self.frame(frame_id, tool_result=session_pb2.ToolResult(call_id=call_id, **outcome))

    def progress(
        self, call_id: str, frame_id: str | None = None, **fields: Any
    ) -> frame_pb2.Receipt:
        return self.frame(frame_id, tool_progress=frame_pb2.ToolProgress(call_id=call_id, **fields))

    # --- what engines do ---------------------------------------------------------------------

    def _at_work(self, run: Run | None) -> Run:
        run = run or self.live
        assert run is not None, "no engine is at work"
        return run

    def admit(self, run: Run | None = None) -> Decision:
        run = self._at_work(run)
        return self.take(self.session.engine_admitted(run.run_id, run.asked.model, self.now_ns))

    def text(
        self, *words: str, tokens: int = 1, run: Run | None = None, channel: int = TEXT
    ) -> None:
        """Each word is one chunk."""
        run = self._at_work(run)
        for word in words:
            run.computed += tokens
            self.take(
                self.session.engine_text(
                    run.run_id,
                    event_pb2.Channel.ValueType(channel),
                    word,
                    tokens,
                    (),
                    self.now_ns,
                )
            )

    def think(self, *words: str) -> None:
        self.text(*words, channel=REASONING)

    def begin_call(self, name: str = "look", run: Run | None = None) -> int:
        run = self._at_work(run)
        index = next(iter(run.indexes))
        self.take(self.session.engine_tool_started(run.run_id, index, name, self.now_ns))
        if not run.stopped:
            run.written.append(index)
        return index

    def fragment(self, index: int, text: str, tokens: int = 1, run: Run | None = None) -> Decision:
        run = self._at_work(run)
        run.computed += tokens
        return self.take(
            self.session.engine_tool_fragment(run.run_id, index, text, tokens, self.now_ns)
        )

    def end_call(self, index: int, run: Run | None = None) -> Decision:
        run = self._at_work(run)
        if index in run.written:
            run.written.remove(index)
        return self.take(self.session.engine_tool_ready(run.run_id, index, self.now_ns))

    def call(self, name: str = "look", arguments: str = '{"a":1}') -> str:
        """A whole call in two fragments; returns its id."""
        index = self.begin_call(name)
        half = len(arguments) // 2
        self.fragment(index, arguments[:half])
        self.fragment(index, arguments[half:])
        self.end_call(index)
        return self.last("tool_call_ready").tool_call_ready.call_id

    def finish(
        self,
        cause: str = "stop",
        *,
        silent: int = 0,
        output_tokens: int | None = -1,
        exact: bool = True,
        run: Run | None = None,
        prompt: tuple[int, int] = (10, 4),
    ) -> Decision:
        """The engine's end, with its own count unless another one is given."""
        run = self._at_work(run)
        run.computed += silent
        run.over = True
        if self.live is run:
            self.live = None
        total = run.computed if output_tokens == -1 else output_tokens
        return self.take(
            self.session.engine_finished(run.run_id, cause, *prompt, total, exact, self.now_ns)
        )

    def fail(self, reason: Reason = Reason.ENGINE_FAILED, run: Run | None = None) -> Decision:
        run = self._at_work(run)
        run.over = True
        if self.live is run:
            self.live = None
        error = BackchannelError(reason, "it broke")
        return self.take(self.session.engine_failed(run.run_id, error, self.now_ns))

    def answer(self, *words: str, question: str = "Hello") -> str:
        """A whole turn; returns its id."""
        self.say(question)
        self.text(*words)
        self.finish()
        return self.turns[-1].turn_id

    # --- what there is to see ----------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        return self.session.state

    @property
    def turns(self) -> Sequence[Turn]:
        return self.session.state.turns

    @property
    def running(self) -> Turn | None:
        return self.session.state.running

    @property
    def asked(self) -> StartEngine:
        """The newest question."""
        return self.runs[-1].asked

    def of(self, kind: str) -> list[Any]:
        """All events of a kind, unwrapped."""
        return [getattr(event, kind) for event in self.events if kind_of(event) == kind]

    def last(self, kind: str) -> event_pb2.Event:
        return next(event for event in reversed(self.events) if kind_of(event) == kind)

    def kinds(self, since: int = 0) -> list[str]:
        return [kind_of(event) for event in self.events[since:]]

    def told_to_stop(self) -> bool:
        """Whether the engine at work has been told to stop."""
        return self.live is not None and self.live.stopped

    @property
    def ending(self) -> event_pb2.TurnFinished:
        """The newest."""
        return self.last("turn_finished").turn_finished

    @property
    def usage(self) -> session_pb2.Usage:
        return self.ending.usage


def spoken(messages: Iterable[session_pb2.Message]) -> list[tuple[str, str]]:
    """A transcript, to be compared: who said what; calls as `name(arguments)`."""
    said = []
    for message in messages:
        text = "".join(part.text for part in message.parts)
        text += "".join(f"{call.name}({call.arguments_json})" for call in message.tool_calls)
        said.append((session_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(), text))
    return said


def refusal(receipt: frame_pb2.Receipt) -> str:
    """Why a frame was refused."""
    assert receipt.status == REJECTED, receipt
    return reason_of(receipt.error)


def raises_reason(call: Callable[[], object]) -> str:
    """The reason of the error that this raises."""
    try:
        call()
    except BackchannelError as error:
        return error.reason.name
    raise AssertionError("it raises nothing")


def durable(state: SessionState) -> dict[str, Any]:
    """All of a state that follows from its events, in a form to compare and to print."""
    return {
        "session_id": state.session_id,
        "config": str(state.config),
        "digest": state.config_digest.hex(),
        "phase": state.phase,
        "last_seq": state.last_seq,
        "times": (state.create_ns, state.update_ns),
        "turns": [_durable_turn(turn) for turn in state.turns],
        "dropped": sorted(state.dropped),
        "queue": [
            (one.frame_id, str(one.message), one.seq, one.time_ns, one.urgent)
            for one in state.queue
        ],
        "calls": list(state.calls),
        "open": list(state.open),
        "deferred": [str(one) for one in state.deferred],
        "history_dropped": state.history_dropped,
        "frames": {
            frame_id: (one.digest.hex(), one.seq, one.turn_id, one.time_ns, one.rank)
            for frame_id, one in state.frames.applied()
        },
        "total": str(state.total_usage),
        "content_bytes": state.content_bytes,
    }


def _durable_turn(turn: Turn) -> dict[str, Any]:
    return {
        "turn_id": turn.turn_id,
        "frames": turn.frame_ids,
        "inputs": [str(message) for message in turn.inputs],
        "model": turn.model,
        "times": (turn.accepted_ns, turn.started_ns, turn.started_seq, turn.ended_seq),
        "text": (turn.text, turn.text_chars),
        "reasoning": (turn.reasoning, turn.reasoning_chars),
        "marks": [(one.seq, one.channel, one.end, one.tokens, one.call_id) for one in turn.marks],
        "calls": [
            (
                call.call_id,
                call.name,
                call.ready,
                call.arguments_json,
                call.idle_deadline_ns,
                call.deadline_ns,
                call.outcome,
                str(call.result),
                call.late_results,
                call.awaited,
                call.told_later,
            )
            for call in turn.calls
        ],
        "rounds": [(one.text_end, one.reasoning_end, one.calls_end) for one in turn.rounds],
        "delivered": turn.delivered_tokens,
        "kept": (turn.kept_chars, turn.kept_reasoning_chars),
        "recoveries": turn.recoveries if turn.usage is None else 0,
        "end": (turn.finish_reason, str(turn.usage), str(turn.error)),
        "told": [one.call_id for one in turn.told],
    }
