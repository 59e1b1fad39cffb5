"""What the owner of a session knows beside its log, and may lose: the soft state.

Nothing here is needed to read the log. What is decided with it is written into events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.rpc.status_pb2 import Status

from backchannel.session.steering import Steer
from backchannel.session.turn import Turn
from backchannel.v1 import session_pb2


@dataclass(slots=True)
class Run:
    """A question that an engine is working on.

    Attributes:
        round: Which question of the turn, from 0.
        delivered: Tokens of it that went into the log.
        wasted: Tokens of it that came after a stop.
        calls: The ids of its tool calls by the engine's own numbering.
        ready_calls: How many of them were announced.
        continued: It goes on from the round's beginning.
    """

    run_id: str
    turn_id: str
    round: int
    delivered: int = 0
    wasted: int = 0
    calls: dict[int, str] = field(default_factory=dict)
    ready_calls: int = 0
    continued: bool = False


@dataclass(slots=True)
class Stop:
    """The running turn is to end so, once its engine has confirmed or `deadline_ns` has passed."""

    reason: session_pb2.FinishReason.ValueType
    deadline_ns: int
    error: Status | None = None


@dataclass(slots=True)
class Bill:
    """What the running turn has cost so far, beyond what its events tell.

    Attributes:
        admitted_ns: When an engine first took it up; 0 if none has, -1 if nobody knows any more.
        model: Who answered last, as `engine/name`.
        paused_ns: How long it waited for credit, the present pause left out.
        wasted: Tokens computed but not in the log.
        estimated: Some engine could not confirm its count.
    """

    admitted_ns: int = 0
    model: str = ""
    paused_ns: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    wasted: int = 0
    estimated: bool = False


@dataclass(slots=True)
class Displayed:
    """How far the user has seen, as readers have said. Positions only ever advance."""

    seq: int = 0
    offsets: dict[str, int] = field(default_factory=dict)

    def saw(self, turn: Turn | None, seq: int, offset: int | None) -> None:
        """A reader spoke of event `seq`, or of `offset` characters of `turn`; the latter wins."""
        if offset is None:
            self.seq = max(self.seq, seq)
        elif turn is not None:
            self.offsets[turn.turn_id] = max(self.offsets.get(turn.turn_id, 0), offset)

    def chars(self, turn: Turn) -> int:
        """Characters of this turn's text that were seen."""
        return max(turn.chars_at(self.seq), self.offsets.get(turn.turn_id, 0))

    def tokens(self, turn: Turn) -> int:
        """Whole tokens of this turn that were seen."""
        return turn.displayed_tokens(self.seq, self.offsets.get(turn.turn_id, 0))

    def forget_before(self, turn: Turn) -> None:
        """Only the last turn can still be asked about."""
        self.offsets = {turn.turn_id: self.offsets.get(turn.turn_id, 0)}


@dataclass(slots=True)
class Progress:
    """Progress reports of one open call: the newest is held back while the second runs.

    Attributes:
        logged_ns: When one was last logged.
        pending: `fraction` and `note` wait to be logged.
        idle_deadline_ns: As moved by the newest report, logged or not.
    """

    logged_ns: int = 0
    fraction: float | None = None
    note: str = ""
    pending: bool = False
    idle_deadline_ns: int = 0


@dataclass(slots=True)
class Owner:
    """All soft state of one session.

    Attributes:
        steer: A message waits to redirect the running turn.
        paused_since_ns: Generation waits for credit since then; 0 if it does not.
        acked_ns: When the last Ack came.
        readers: How many readers count for the disconnect policy.
        absent_since_ns: With no reader: since when; a message that arrives counts as a sign of
            life.
        recovered_ns: When this process took the session over with a turn running; 0 if it did not.
        draining: No turn is started any more.
    """

    run: Run | None = None
    stop: Stop | None = None
    steer: Steer | None = None
    paused_since_ns: int = 0
    acked_ns: int = 0
    bill: Bill = field(default_factory=Bill)
    displayed: Displayed = field(default_factory=Displayed)
    progress: dict[str, Progress] = field(default_factory=dict)
    readers: int = 0
    absent_since_ns: int = 0
    recovered_ns: int = 0
    draining: bool = False
    timer_ns: int | None = None
