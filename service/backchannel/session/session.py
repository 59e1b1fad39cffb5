"""A session as a value: feed it what happens, append the events it returns.

How it works. Every method named after something that happens (a frame came, the engine said a
token, a deadline passed, readers came or went) returns a `Decision`: events to append as one,
effects to perform at once, and perhaps a receipt to send when the events are committed. The state
has then already been advanced, in memory only; if the append fails, the object is to be dropped
and folded anew from the log.

The rules it keeps, on every path:

* events are numbered from 1 without gaps, and the state is their fold alone;
* exactly one `TurnFinished` for each `TurnStarted`, exactly one result for each ready call;
* a frame with an id is applied once, and answered the same ever after;
* what a stop keeps is computed from what was displayed, never from what was sent;
* generated = delivered + wasted, to the token.

No I/O, no tasks, no clock of its own: times come in as Unix nanoseconds, ids from `ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session import checkpoint as checkpoints
from backchannel.session.calls import Calls
from backchannel.session.configuration import (
    GRACE_S,
    SECOND_NS,
    SESSION_IDLE_S,
    frame_digest,
    grace_ns,
)
from backchannel.session.decision import Decision, SetTimer, StopEngine
from backchannel.session.draft import Draft
from backchannel.session.inputs import Inputs
from backchannel.session.output import Output
from backchannel.session.owner import Owner
from backchannel.session.receipts import FrameRecord
from backchannel.session.state import SessionState, stamp_of
from backchannel.session.table import Phase
from backchannel.session.tools import Tools
from backchannel.session.turn import Turn
from backchannel.session.turns import Turns
from backchannel.session.validation import check_frame, duration_ns
from backchannel.session.views import (
    SNAPSHOT_MAX_BYTES,
    brief_config,
    session_view,
    snapshots,
)
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

_FRAME_ID_CHARS: Final = 128

_POLICY: Final = session_pb2.DisconnectPolicy


class Session:
    """One conversation. Made by `create` or `fold`.

    Attributes:
        state: The fold of its events.
        earliest_seq: The oldest event that the log still has; kept by whoever owns the log.
        saved_seq: Its newest checkpoint in the log, 0 if there is none; likewise.
        expire_after_ns: How long it stays without an event; as its owner says.
    """

    def __init__(self, state: SessionState, ids: Callable[[str], str]) -> None:
        self.state = state
        self.earliest_seq = 1
        self.saved_seq = 0
        self.expire_after_ns = SESSION_IDLE_S * SECOND_NS
        self._brief: session_pb2.SessionConfig | None = None
        self._owner = Owner(absent_since_ns=state.update_ns)
        self._draft = Draft(state)
        calls = self._calls = Calls(self._draft, self._owner)
        self._turns = Turns(self._draft, self._owner, calls, ids)
        self._output = Output(self._draft, self._owner, self._turns, calls, ids)
        self._tools = Tools(self._draft, self._owner, self._turns, calls)
        self._inputs = Inputs(self._draft, self._owner, self._turns, self._tools)

    @classmethod
    def create(
        cls,
        config: session_pb2.SessionConfig,
        *,
        session_id: str,
        config_digest: bytes,
        frame_id: str = "",
        now_ns: int,
        ids: Callable[[str], str],
        expire_after_ns: int = SESSION_IDLE_S * SECOND_NS,
    ) -> tuple[Session, Decision]:
        """A new session with its first event.

        Args:
            config: In force, see `configuration.effective_config`.
            session_id: Its id.
            config_digest: Of the configuration as sent.
            frame_id: Of the Open that created it, if one did.
            now_ns: The time.
            ids: Makes unguessable ids from a prefix.
            expire_after_ns: How long it stays without an event.
        """
        session = cls(SessionState(), ids)
        session.expire_after_ns = expire_after_ns
        draft = session._draft
        draft.begin(now_ns)
        session._owner.absent_since_ns = draft.now_ns
        event = draft.event()
        event.frame_id, event.frame_digest = frame_id, config_digest
        opened = event.session_opened.session
        opened.session_id = session_id
        opened.config.CopyFrom(config)
        opened.state = session_pb2.Session.STATE_IDLE
        opened.last_seq = opened.earliest_seq = 1
        opened.create_time.CopyFrom(stamp_of(draft.now_ns))
        opened.update_time.CopyFrom(opened.create_time)
        opened.expire_time.CopyFrom(stamp_of(draft.now_ns + expire_after_ns))
        draft.put(event)
        return session, draft.take()

    @classmethod
    def fold(
        cls,
        checkpoint: bytes | None,
        events: Iterable[event_pb2.Event],
        *,
        ids: Callable[[str], str],
    ) -> Session:
        """A session as its log tells it; `recover` it before anything else if it was lost.

        Raises:
            BackchannelError: `LOG_CORRUPT`.
        """
        session = cls(checkpoints.load(checkpoint) if checkpoint else SessionState(), ids)
        for event in events:
            session.apply(event)
        return session

    def apply(self, event: event_pb2.Event) -> None:
        """Take in an event from the log while folding.

        Raises:
            BackchannelError: `LOG_CORRUPT`.
        """
        self.state.apply(event)
        self._owner.absent_since_ns = self.state.update_ns

    # --- what it is --------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """Its id."""
        return self.state.session_id

    @property
    def active(self) -> bool:
        """Something runs or waits: a new owner must look at it."""
        state = self.state
        return bool(state.running or state.queue or state.open or state.deferred)

    @property
    def quiescent(self) -> bool:
        """Nothing runs and no call is open, so that a checkpoint may be made."""
        return self.state.phase is Phase.IDLE and not self.state.open

    @property
    def at_work(self) -> bool:
        """A turn runs or a call is open, so that it is not idle, however long nothing happens."""
        return self.state.running is not None or bool(self.state.open)

    @property
    def expire_ns(self) -> int:
        """When it expires if nothing happens in it."""
        return self.state.update_ns + self.expire_after_ns

    def view(self, *, history: bool = True) -> session_pb2.Session:
        """As clients see it.

        Args:
            history: Whether with the imported history.
        """
        return self._view(self.state.config if history else self._brief_config())

    def summary(self) -> session_pb2.Session:
        """The same without its configuration, which does not change: see `origin`."""
        return self._view(None)

    def origin(self) -> session_pb2.Session:
        """The part that never changes: the configuration, but for the imported history."""
        return session_pb2.Session(config=self._brief_config())

    def _brief_config(self) -> session_pb2.SessionConfig:
        if self._brief is None:
            self._brief = brief_config(self.state.config)
        return self._brief

    def _view(self, config: session_pb2.SessionConfig | None) -> session_pb2.Session:
        return session_view(
            self.state,
            config,
            earliest_seq=self.earliest_seq,
            expire_after_ns=self.expire_after_ns,
            engine_at_work=self._owner.run is not None,
        )

    def snapshots(self, max_bytes: int = SNAPSHOT_MAX_BYTES) -> list[frame_pb2.Snapshot]:
        """All of it, in as many frames as it takes; all but the last have `more`."""
        return snapshots(self.state, self.view(), max_bytes=max_bytes)

    def checkpoint(self) -> bytes:
        """The state, for `fold`. Only while `quiescent`."""
        return checkpoints.dump(self.state)

    def checkpoint_lines(self) -> list[bytes]:
        """The same as `checkpoint.packed` takes it: cheap, where that may be long."""
        return checkpoints.lines(self.state)

    def config_matches(self, digest: bytes) -> bool:
        """Whether it was created with the configuration of that digest."""
        return self.state.config_digest == digest

    # --- frames ------------------------------------------------------------------------------

    def accept(
        self,
        frame: frame_pb2.ClientFrame,
        now_ns: int,
        *,
        judge: Callable[[session_pb2.UserMessage], None] | None = None,
    ) -> Decision:
        """A frame came. A bad one is refused in the receipt, and changes nothing.

        Args:
            frame: The frame.
            now_ns: The time.
            judge: Raises `BackchannelError` if the model cannot do what a message asks for.
        """
        draft, frame_id = self._draft, frame.frame_id
        digest = frame_digest(frame) if frame_id else b""
        draft.begin(now_ns, frame_id, digest)
        try:
            check_frame(frame)
            known = self.state.frames.find(frame_id) if frame_id else None
            if known is not None:
                return draft.take(self._repeated(frame_id, digest, known))
            if self.state.phase is Phase.CLOSED:
                raise BackchannelError(
                    Reason.SESSION_CLOSED, "this session is closed; create a new one"
                )
            if judge is not None and frame.HasField("message"):
                judge(frame.message)
            status, seq, turn_id, delivery = self._inputs.take(frame)
        except BackchannelError as error:
            if error.reason is Reason.LOG_CORRUPT:
                # Not the client's doing: an event of ours does not fit, and the owner must know.
                raise
            return draft.take(
                frame_pb2.Receipt(
                    frame_id=frame_id[:_FRAME_ID_CHARS],
                    status=frame_pb2.RECEIPT_STATUS_REJECTED,
                    error=error.to_status(),
                )
            )
        if frame_id and not seq:
            self.state.frames.note_quiet(frame_id, digest, turn_id, draft.now_ns)
        if frame_id and seq:
            # The receipt is read from the very record that answers a repeat, also after a crash.
            record = self.state.frames.find(frame_id)
            if record is not None:
                seq, turn_id, delivery = record.seq, record.turn_id, record.delivery
        self._set_timer()
        return draft.take(
            frame_pb2.Receipt(
                frame_id=frame_id, status=status, seq=seq, turn_id=turn_id, delivery=delivery
            )
        )

    def _repeated(self, frame_id: str, digest: bytes, known: FrameRecord) -> frame_pb2.Receipt:
        if known.digest != digest:
            raise BackchannelError(
                Reason.FRAME_ID_REUSED,
                "this frame_id was used for another frame of this session; choose a new one",
                field="frame_id",
            )
        return frame_pb2.Receipt(
            frame_id=frame_id,
            status=frame_pb2.RECEIPT_STATUS_DUPLICATE,
            seq=known.seq,
            turn_id=known.turn_id,
            delivery=known.delivery,
        )

    # --- the engine --------------------------------------------------------------------------

    def engine_admitted(self, run_id: str, model: str, now_ns: int) -> Decision:
        """An engine has taken a question up: `model`, as `engine/name`."""
        self._draft.begin(now_ns)
        self._output.admitted(run_id, model)
        return self._draft.take()

    def engine_text(
        self,
        run_id: str,
        channel: event_pb2.Channel.ValueType,
        text: str,
        token_count: int,
        logprobs: Sequence[event_pb2.TokenLogprob],
        now_ns: int,
    ) -> Decision:
        """The engine yielded tokens of text or reasoning."""
        self._draft.begin(now_ns)
        self._output.text(run_id, channel, text, token_count, logprobs)
        owner = self._owner
        if owner.stop is not None or owner.paused_since_ns:
            self._set_timer()  # A boundary was reached, or the credit is used up.
        return self._draft.take()

    def engine_tool_started(self, run_id: str, index: int, name: str, now_ns: int) -> Decision:
        """The model begins to write a tool call."""
        self._draft.begin(now_ns)
        self._output.tool_started(run_id, index, name)
        return self._timed()

    def engine_tool_fragment(
        self, run_id: str, index: int, text: str, token_count: int, now_ns: int
    ) -> Decision:
        """The engine yielded a piece of a call's arguments."""
        self._draft.begin(now_ns)
        self._output.tool_fragment(run_id, index, text, token_count)
        return self._draft.take()

    def engine_tool_ready(self, run_id: str, index: int, now_ns: int) -> Decision:
        """A call's arguments are complete."""
        self._draft.begin(now_ns)
        self._output.tool_ready(run_id, index)
        return self._timed()

    def engine_finished(
        self,
        run_id: str,
        cause: str,
        prompt_tokens: int,
        cached_prompt_tokens: int,
        output_tokens: int | None,
        exact: bool,
        now_ns: int,
    ) -> Decision:
        """The engine has said all, or confirms a stop.

        Args:
            run_id: The question.
            cause: `stop`, `length`, `tool_calls`, `content_filter` or `stopped`.
            prompt_tokens: Length of the prompt.
            cached_prompt_tokens: How much of it was cached.
            output_tokens: All tokens it computed for this question; None if it does not tell.
            exact: Whether the counts are its own.
            now_ns: The time.
        """
        self._draft.begin(now_ns)
        self._output.finished(
            run_id, cause, prompt_tokens, cached_prompt_tokens, output_tokens, exact
        )
        return self._timed()

    def engine_failed(self, run_id: str, error: BackchannelError, now_ns: int) -> Decision:
        """The engine failed, or could not be asked."""
        self._draft.begin(now_ns)
        self._output.failed(run_id, error)
        return self._timed()

    # --- time, readers, the end --------------------------------------------------------------

    def tick(self, now_ns: int) -> Decision:
        """The timer went off: do what is due."""
        now_ns = self._draft.begin(now_ns)
        owner, turn = self._owner, self.state.running
        owner.timer_ns = None
        if owner.stop is not None:
            if owner.stop.deadline_ns <= now_ns:
                self._turns.abandon()
        elif turn is not None:
            if self._turn_deadline_ns(turn) <= now_ns:
                self._turns.stop(session_pb2.FINISH_REASON_DEADLINE, "DEADLINE")
            elif self._grace_deadline_ns(turn, now_ns) <= now_ns:
                self._turns.stop(session_pb2.FINISH_REASON_DISCONNECTED, "DISCONNECTED")
            else:
                steer_ns = self._turns.steer_deadline_ns
                if steer_ns is not None and steer_ns <= now_ns:
                    self._turns.steer_now()
        self._tools.tick()
        return self._timed(always=True)

    def readers_changed(self, count: int, now_ns: int) -> Decision:
        """So many readers now count for the disconnect policy."""
        now_ns = self._draft.begin(now_ns)
        owner = self._owner
        if owner.readers and not count:
            owner.absent_since_ns = now_ns
        owner.readers = count
        policy = self.state.config.on_disconnect.action
        if count:
            self._turns.start_next()
        elif (
            policy == _POLICY.ACTION_CANCEL_NOW
            and self.state.running is not None
            and owner.stop is None
        ):
            self._turns.stop(session_pb2.FINISH_REASON_DISCONNECTED, "DISCONNECTED")
        return self._timed()

    def recover(
        self,
        now_ns: int,
        lost: BackchannelError | None = None,
        *,
        engine_continues: bool = False,
    ) -> Decision:
        """A new owner takes over: end what cannot go on, go on with what can.

        Args:
            now_ns: The time; it counts as the moment the last reader left.
            engine_continues: The model of the session can go on from a partial answer.
            lost: Why the turn could not go on, if its owner is not simply gone: the log had
                refused a write.
        """
        now_ns = self._draft.begin(now_ns)
        owner, turn = self._owner, self.state.running
        owner.absent_since_ns = owner.recovered_ns = now_ns
        if turn is not None:
            owner.bill.estimated = True
            owner.bill.admitted_ns = -1
            if any(queued.steers for queued in self.state.queue):
                self._turns.steer()
            if self.state.phase is Phase.STOPPING:
                self._turns.finish(session_pb2.FINISH_REASON_INTERRUPTED)
            elif self.state.phase is Phase.GENERATING and (
                lost is not None or not self._turns.resume(engine_continues=engine_continues)
            ):
                reason = session_pb2.FINISH_REASON_ERROR
                if lost is None:
                    reason = session_pb2.FINISH_REASON_OWNER_LOST
                    lost = BackchannelError(
                        Reason.OWNER_LOST,
                        "the process that ran this turn is gone; send the message again",
                    )
                self._turns.finish(reason, lost.to_status())
        else:
            self._turns.start_next()
        return self._timed()

    def drain(self, now_ns: int, *, survives: bool) -> Decision:
        """The server leaves: end the running turn unless policy and log let it be resumed."""
        self._draft.begin(now_ns)
        self._owner.draining = True
        cancel_now = self.state.config.on_disconnect.action == _POLICY.ACTION_CANCEL_NOW
        if (
            self.state.running is not None
            and self._owner.stop is None
            and self.state.phase is not Phase.STOPPING
            and (cancel_now or not survives)
        ):
            self._turns.stop(session_pb2.FINISH_REASON_DISCONNECTED, "DISCONNECTED")
        return self._timed()

    def close(self, reason: str, now_ns: int) -> Decision:
        """End the session for good: `DELETED` or `EXPIRED`."""
        self._draft.begin(now_ns)
        owner = self._owner
        if self.state.phase is Phase.CLOSED:
            return self._draft.take()
        owner.draining = True
        if self.state.running is not None:
            run = owner.run
            if owner.stop is None and self.state.phase is not Phase.STOPPING:
                self._turns.stop(session_pb2.FINISH_REASON_DISCONNECTED, "CLOSED")
            elif run is not None:
                self._draft.effect(StopEngine(run.run_id))
            # Nobody will be there to hear the engine's confirmation.
            self._turns.abandon()
        self._calls.close_all("CLOSED")
        self._draft.emit("session_closed", event_pb2.SessionClosed(reason=reason))
        return self._timed()

    def _turn_deadline_ns(self, turn: Turn) -> int:
        limit_ns = duration_ns(self.state.config.limits.max_turn_duration)
        return self._tools.after_recovery(turn.started_ns + limit_ns)

    def _grace_deadline_ns(self, turn: Turn, now_ns: int) -> int:
        """When the running turn ends for want of readers; far away if it does not."""
        policy, never = self.state.config.on_disconnect, 2**63
        paused_ns = self._owner.paused_since_ns
        if policy.action == _POLICY.ACTION_CONTINUE:
            return never
        if paused_ns and self._owner.readers:
            # Who is there and does not say what they have seen may as well be gone, which takes a
            # while to tell under CANCEL_NOW too. Who reads slowly is there.
            return max(paused_ns, self._owner.acked_ns) + (
                grace_ns(self.state.config) or GRACE_S * SECOND_NS
            )
        if self._owner.readers:
            return never
        if policy.action == _POLICY.ACTION_CANCEL_NOW:
            return now_ns
        since_ns = max(self._owner.absent_since_ns, turn.started_ns)
        return since_ns + grace_ns(self.state.config)

    def _next_ns(self) -> int | None:
        owner, turn = self._owner, self.state.running
        due = [self._tools.next_ns()]
        if owner.stop is not None:
            due.append(owner.stop.deadline_ns)
        elif turn is not None:
            due += [
                self._turn_deadline_ns(turn),
                self._grace_deadline_ns(turn, self._draft.now_ns),
                self._turns.steer_deadline_ns,
            ]
        return min((at_ns for at_ns in due if at_ns is not None), default=None)

    def _set_timer(self, *, always: bool = False) -> None:
        at_ns = self._next_ns()
        if always or at_ns != self._owner.timer_ns:
            self._owner.timer_ns = at_ns
            self._draft.effect(SetTimer(at_ns))

    def _timed(self, *, always: bool = False) -> Decision:
        self._set_timer(always=always)
        return self._draft.take()
