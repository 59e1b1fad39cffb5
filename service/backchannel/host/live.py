"""A live session: the core in memory, its way into the log, and whoever reads or feeds it.

Every input takes the same way:

1. The core decides, and has advanced.
2. The effects are performed at once, a stop before all others: an engine never waits for a disk.
3. The events become bytes, once, and the session enlists with the committer.
4. When they are committed the readers are woken and the receipts that depend on them go out.

What the core knows is therefore ahead of the log by what is under way. Nobody sees that: whatever
is shown (a view, a snapshot, a receipt) is taken at once and released after the commit of the last
event it rests on.

When the log refuses a write, the core has advanced to where the log will never be. The session is
then *faulty*: its engine is stopped, whoever waits for a receipt is told, inputs are refused, and
the readers stay. It is read from the log again as soon as that answers, the broken turn gets its
ending, and things go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from backchannel.engines.protocol import (
    EngineUsage,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.errors import BackchannelError, reason_of
from backchannel.host.audience import Audience
from backchannel.host.clock import SECOND_NS, Clock, within
from backchannel.host.comeback import Comeback
from backchannel.host.committer import Committer
from backchannel.host.config import HostConfig
from backchannel.host.effects import Effects
from backchannel.host.faults import broken_error, draining_error, where
from backchannel.host.ledger import Ledger, settle
from backchannel.host.loading import Loader
from backchannel.host.questions import can_continue, check_message
from backchannel.host.reader import Reader
from backchannel.host.runner import Runner, Spawn
from backchannel.host.saving import Record
from backchannel.log.protocol import NEVER_NS, Head, Log, Origin, not_found
from backchannel.observer import Observer
from backchannel.session.decision import Decision, StopEngine
from backchannel.session.session import Session
from backchannel.session.table import Phase
from backchannel.v1 import frame_pb2, session_pb2

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    """What all sessions of a process share.

    Attributes:
        log: Where events are kept.
        clock: Where times come from.
        config: Limits and times.
        committer: Writes for all.
        runner: Asks engines for all.
        loader: Reads sessions from the log.
        spawn: Starts a task that the host owns.
        rng: For jitter.
        gone: Called when a session is of no more use in memory.
        rested: Called when a session has come to rest, with everything committed.
        observer: Watches sessions.
    """

    log: Log
    clock: Clock
    config: HostConfig
    committer: Committer
    runner: Runner
    loader: Loader
    spawn: Spawn
    rng: random.Random
    gone: Callable[[LiveSession], None]
    rested: Callable[[LiveSession], None]
    observer: Observer


class LiveSession:
    """One session in memory.

    Attributes:
        ledger: Its way into the log.
        audience: Who reads it.
        closed_seq: Its last event, once that is committed; 0 while there may be more.
        used_ns: When somebody last asked for it.
        retention_due: Something is to be trimmed as soon as the session rests.
        saved_seq: Its newest checkpoint; 0 if it has none.

    Args:
        core: As after its newest committed event.
        resources: What it shares with the others.
    """

    def __init__(self, core: Session, resources: Resources, *, committed_seq: int) -> None:
        self.session_id: str = core.session_id
        self.closed_seq = 0
        self.used_ns = resources.clock.now_ns()
        config, clock = resources.config, resources.clock
        watch = self._watch = resources.observer.session(self.session_id)
        self.ledger = Ledger(self, committed_seq, resources.committer, config, watch)
        self.audience = Audience(self, resources.log, clock, config, watch)
        self._effects = Effects(self, self.ledger, resources.runner, clock, watch)
        self._core = core
        self._resources = resources
        self._clock = clock
        self._max_ahead = config.max_ahead_events
        self._fault: BackchannelError | None = None
        self._resting: list[asyncio.Future[None]] = []
        self._comeback: Comeback | None = None
        self._gone: BackchannelError | None = None
        self.retention_due = False
        self.saved_seq = core.saved_seq
        core.expire_after_ns = round(config.expire_after_s * SECOND_NS)

    # --- what doors do -----------------------------------------------------------------------

    async def send(self, frame: frame_pb2.ClientFrame) -> frame_pb2.Receipt:
        """Take in one frame; returns its receipt once its events are committed.

        Raises:
            BackchannelError: `LOG_UNAVAILABLE`, `DRAINING` and the like: trouble that is not the
                frame's. What is wrong with the frame itself is said in the receipt.
        """
        self._refuse_if_unable(frame)
        if not frame.HasField("interrupt"):  # A stop waits for nothing.
            await self._resources.committer.room()
            self._refuse_if_unable(frame)
        decision = self._take(frame)
        if decision is None or decision.receipt is None:
            raise self._trouble() or broken_error()
        await self.ledger.commit()
        return decision.receipt

    def submit(self, frame: frame_pb2.ClientFrame, reader: Reader) -> None:
        """Take in one frame of a stream; its receipt goes to the reader, in order."""
        if frame.HasField("ping"):
            reader.answer_ping()
        receipt = frame_pb2.Receipt(frame_id=frame.frame_id)
        error = None
        try:
            self._refuse_if_unable(frame)
            decision = self._take(frame)
            if decision is None or decision.receipt is None:
                error = self._trouble() or broken_error()
            else:
                receipt = decision.receipt
        except BackchannelError as refusal:
            error = refusal
        if not frame.frame_id:
            return
        reader.owe()
        if error is None:
            self.ledger.after_commit(partial(reader.deliver, receipt))
        else:
            # In its place among the receipts of the frames before it.
            self.ledger.after_commit(lambda _: reader.deliver(receipt, error))

    def _take(self, frame: frame_pb2.ClientFrame) -> Decision | None:
        decision = self._input(partial(self._core.accept, frame, judge=self._judge))
        receipt = decision.receipt if decision is not None else None
        if self._watch is not None and receipt is not None and receipt.HasField("error"):
            self._watch.refused(reason_of(receipt.error))
        return decision

    def _judge(self, message: session_pb2.UserMessage) -> None:
        runner, state = self._resources.runner, self._core.state
        check_message(runner.engines, state.config, message)
        if state.running is None and not state.queue:  # Its turn starts at once.
            runner.check_room(state.config.model)

    async def view(self, *, history: bool = True) -> session_pb2.Session:
        """The session, as committed; perhaps without the history that it was created with."""
        trouble = self._trouble()
        if trouble is not None:
            raise trouble.with_traceback(None)
        view = self._core.view(history=history)
        await self.ledger.commit()
        return view

    def attach(self, after_seq: int, *, snapshot: bool, max_lag_events: int = 0) -> Reader:
        """Read from after `after_seq`, or from a snapshot of now.

        Args:
            after_seq: The last event that is known already.
            snapshot: Begin with a snapshot, whatever `after_seq` says.
            max_lag_events: See `Lag`; whether a lagging reader gets a snapshot is as at first.

        Raises:
            BackchannelError: `CURSOR_BEYOND_END`, `CURSOR_TRIMMED`, `READERS_FULL`, `DRAINING`.
        """
        trouble = self._gone or (self._trouble() if snapshot else None)
        if trouble is not None:
            raise trouble.with_traceback(None)
        return self.audience.admit(after_seq, snapshot=snapshot, max_lag_events=max_lag_events)

    # --- what readers need -------------------------------------------------------------------

    @property
    def resting(self) -> bool:
        """No turn runs, and everything decided is committed."""
        return self._fault is None and not self.ledger.behind and self._core.state.running is None

    async def room(self) -> None:
        """Wait while the log cannot take more."""
        await self._resources.committer.room()

    @property
    def earliest_seq(self) -> int:
        """The oldest event that the log has."""
        return self._core.earliest_seq

    def readers_changed(self, count: int) -> None:
        """So many read now."""
        self._input(self._core.readers_changed, count)

    def snapshot(self) -> list[bytes]:
        """How things stand as of the newest decision, in serialised frames."""
        return [
            frame_pb2.ServerFrame(snapshot=part).SerializeToString()
            for part in self._core.snapshots()
        ]

    # --- inputs ------------------------------------------------------------------------------

    def _input(self, decide: Callable[..., Decision], *args: object) -> Decision | None:
        """Let the core decide, and act on it; None if it could not."""
        if self._fault is not None or self._gone is not None:
            return None
        now_ns = self._clock.now_ns()
        try:
            decision = decide(*args, now_ns)
            self._effects.perform(decision)
        except Exception as error:  # noqa: BLE001 - a bug ends this turn, not the process
            self._break(error)
            return None
        return decision

    def tick(self) -> None:
        """The time has come that a decision had asked for."""
        self._input(self._core.tick)

    # --- what the engine says ----------------------------------------------------------------

    def run_admitted(self, run_id: str, model: str) -> None:
        """This model is asked from now on."""
        self._input(self._core.engine_admitted, run_id, model)

    def run_text(self, run_id: str, chunk: TextChunk) -> None:
        """Text came."""
        self._input(
            self._core.engine_text,
            run_id,
            chunk.channel,
            chunk.text,
            chunk.token_count,
            chunk.logprobs,
        )

    def run_tool_started(self, run_id: str, chunk: ToolCallStart) -> None:
        """The model begins a call."""
        self._input(self._core.engine_tool_started, run_id, chunk.index, chunk.name)

    def run_tool_fragment(self, run_id: str, chunk: ToolCallFragment) -> None:
        """A piece of a call's arguments came."""
        self._input(
            self._core.engine_tool_fragment, run_id, chunk.index, chunk.text, chunk.token_count
        )

    def run_tool_ready(self, run_id: str, chunk: ToolCallEnd) -> None:
        """A call is complete."""
        self._input(self._core.engine_tool_ready, run_id, chunk.index)

    def run_finished(self, run_id: str, cause: str, usage: EngineUsage) -> None:
        """The engine is done."""
        self._effects.ended(run_id)
        self._input(
            self._core.engine_finished,
            run_id,
            cause,
            usage.prompt_tokens,
            usage.cached_prompt_tokens,
            usage.output_tokens,
            usage.exact,
        )

    def run_failed(self, run_id: str, error: BackchannelError) -> None:
        """The engine gave up."""
        self._effects.ended(run_id)
        self._input(self._core.engine_failed, run_id, error)

    @property
    def runs_ahead(self) -> bool:
        """Whether the log has fallen so far behind that a generation should wait."""
        return self.ledger.behind >= self._max_ahead

    async def caught_up(self) -> None:
        """Wait until it has not."""
        await self.ledger.verdict()

    # --- what the ledger says ----------------------------------------------------------------

    @property
    def newest_ns(self) -> int:
        """The time of the newest event."""
        return self._core.state.update_ns

    def summary(self) -> Head:
        """What the log keeps beside the events."""
        core = self._core
        expires_ns = NEVER_NS if core.at_work else core.expire_ns
        if core.state.phase is Phase.CLOSED:
            expires_ns = 0  # If its deletion is cut short the next sweep deletes it.
        return Head(core.summary().SerializeToString(), core.active, expires_ns)

    def origin(self) -> Origin:
        """What the log keeps of the session that never changes."""
        origin = self._core.origin()
        return Origin(origin.SerializeToString(), dict(origin.config.labels))

    def landed(self) -> None:
        """An append was committed: show it."""
        self._comeback = None
        if not self.ledger.behind and self._fault is None:
            state = self._core.state
            if state.phase is Phase.CLOSED:
                self.closed_seq = state.last_seq
            if state.running is None:
                self._come_to_rest()
        for reader in self.audience.readers:
            reader.wake()

    def refused(self, error: Exception) -> None:
        """An append was refused, or could not even be made."""
        self._break(error)

    def _come_to_rest(self) -> None:
        self._resources.rested(self)
        waiting, self._resting = self._resting, []
        for future in waiting:
            settle(future)

    # --- trouble -----------------------------------------------------------------------------

    def _trouble(self) -> BackchannelError | None:
        return self._gone or self._fault

    def _refuse_if_unable(self, frame: frame_pb2.ClientFrame) -> None:
        trouble = self._trouble()
        if trouble is None and self.audience.leaving and frame.HasField("message"):
            # A stop or a tool's result still helps a turn to its end; a new one has no future here.
            trouble = draining_error()
        if trouble is not None:
            raise trouble.with_traceback(None)

    def _break(self, error: Exception) -> None:
        """The core failed: what it knows now is worth nothing, what is in the log is."""
        if isinstance(error, BackchannelError):
            self._fall(error)
            return
        _logger.error("session_broke", **where(error))
        self._fall(broken_error())

    def _fall(self, error: BackchannelError) -> None:
        """Stop everything that rests on what will not be in the log, and begin to come back."""
        if self._fault is not None:
            self.ledger.give_up(error)
            return
        self._fault = error
        if self._watch is not None:
            self._watch.lost(error.reason.value)
        self._effects.abandon()
        self.ledger.give_up(error)
        self.audience.withdraw_snapshots()
        if self._gone is None:
            self._resources.spawn(self._come_back(), "reload")

    async def _come_back(self) -> None:
        """Read the session from the log again, as soon as that answers."""
        resources = self._resources
        await self.ledger.landing()
        if self._comeback is None:
            self._comeback = Comeback(
                self.session_id, resources.loader, self._clock, resources.config, resources.rng
            )
        try:
            core = await self._comeback.core()
        except BackchannelError as error:
            self._give_up(error)
            return
        if core is None:
            self._give_up(not_found())
        elif self._gone is None:
            self._revive(core)

    def _revive(self, core: Session) -> None:
        last_seq = core.state.last_seq
        if last_seq != self.ledger.committed_seq:
            # What was thought refused is there after all; readers find it in the log.
            self.ledger.restart(last_seq)
        lost, self._fault = self._fault, None
        self._core = core
        core.expire_after_ns = round(self._resources.config.expire_after_s * SECOND_NS)
        self.saved_seq = core.saved_seq
        self.closed_seq = last_seq if core.state.phase is Phase.CLOSED else 0
        _logger.info("session_is_back", last_seq=last_seq)
        self._input(lambda now_ns: core.recover(now_ns, lost))
        self.audience.resume()

    def _give_up(self, error: BackchannelError) -> None:
        """The log has no such session any more, or nothing that makes one."""
        self.forget(error)
        self._resources.gone(self)

    # --- what the host does ------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if the session leaves memory."""
        return (
            not self.audience.readers
            and self._effects.nothing_goes_on
            and self.ledger.settled
            and self._fault is None
            and self._core.quiescent
            and not self._core.active
        )

    @property
    def expire_ns(self) -> int:
        """When the session expires if nothing happens in it."""
        return NEVER_NS if self._core.at_work else self._core.expire_ns

    def config_matches(self, digest: bytes) -> bool:
        """Whether the session was created with the configuration of this digest."""
        return self._core.config_matches(digest)

    def open(self, decision: Decision) -> None:
        """Act on the decision that created the session."""
        self._effects.perform(decision)

    def recover(self) -> None:
        """End, or go on with, what the process that owned the session before left unfinished."""
        engines, model = self._resources.runner.engines, self._core.state.config.model
        continues = self._core.active and can_continue(engines, model)
        self._input(partial(self._core.recover, engine_continues=continues))

    async def close(self, reason: str) -> None:
        """End the session for good, and let the readers hear of it.

        Raises:
            BackchannelError: The log refuses.
        """
        trouble = self._trouble()
        if trouble is not None:
            raise trouble.with_traceback(None)
        if self._core.state.phase is not Phase.CLOSED:
            self._input(self._core.close, reason)
        await self.ledger.commit()
        self._effects.abandon()
        await within(self._clock, self._resources.config.farewell_s, self.audience.gone())

    def checkpoint(self) -> Record | None:
        """The folded state, if now is a moment to take it."""
        if not self.resting or not self._core.quiescent or self.closed_seq:
            return None
        return Record(self.ledger.committed_seq, self._core.checkpoint_lines())

    @property
    def rested_seq(self) -> int:
        """The last event before the running turn; the newest committed one with none running."""
        turn = self._core.state.running
        return turn.started_seq - 1 if turn is not None else self.ledger.committed_seq

    def trimmed(self, earliest_seq: int) -> None:
        """The log begins here now."""
        self._core.earliest_seq = earliest_seq

    def go_away(self, frame: bytes) -> None:
        """The host is leaving: tell the readers, start nothing new."""
        self.audience.go_away(frame)

    async def rest(self) -> None:
        """Wait until no turn runs and all is committed, or the session is of no more use."""
        while self._gone is None and not self.resting:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._resting.append(future)
            await future

    def drain(self, *, survives: bool) -> bool:
        """The time is up: end the running turn where nobody could go on with it.

        Returns:
            Whether the turn is ending, so that `rest` comes soon.
        """
        decision = self._input(partial(self._core.drain, survives=survives))
        if decision is None or self._core.state.running is None:
            return decision is not None
        stopping = any(type(effect) is StopEngine for effect in decision.effects)
        return stopping or self._core.state.phase is Phase.STOPPING

    def forget(self, error: BackchannelError) -> None:
        """Leave memory: stop what runs, end all readers with this error, refuse everything."""
        if self._gone is not None:
            return
        self._gone = error
        if self._watch is not None:
            self._watch.gone(error.reason.value)
        self._effects.abandon()
        self.audience.fail(error)
        waiting, self._resting = self._resting, []
        for future in waiting:
            settle(future)
