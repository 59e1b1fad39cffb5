"""A decision in the making: numbers and stamps events, and applies each to the state at once."""

from __future__ import annotations

from google.protobuf.message import Message

from backchannel.session.decision import NOTHING, Decision, Effect
from backchannel.session.state import SessionState
from backchannel.v1 import event_pb2, frame_pb2


class Draft:
    """Collects what one input leads to.

    Args:
        state: Advanced by every event that is emitted.
    """

    __slots__ = ("_digest", "_effects", "_events", "frame_id", "now_ns", "state")

    def __init__(self, state: SessionState) -> None:
        self.state = state
        self.now_ns = 0
        self.frame_id = ""
        self._digest = b""
        self._events: list[event_pb2.Event] = []
        self._effects: list[Effect] = []

    def begin(self, now_ns: int, frame_id: str = "", digest: bytes = b"") -> int:
        """Start anew for an input; the time never runs backwards within a session."""
        self.now_ns = max(now_ns, self.state.update_ns)
        self.frame_id, self._digest = frame_id, digest
        return self.now_ns

    def event(self, *, caused: bool = False) -> event_pb2.Event:
        """The next event, still without a kind; `caused` directly by the frame at hand, or not."""
        event = event_pb2.Event(seq=self.state.last_seq + 1)
        event.time.seconds, event.time.nanos = divmod(self.now_ns, 1_000_000_000)
        if caused and self.frame_id:
            event.frame_id, event.frame_digest = self.frame_id, self._digest
        return event

    def put(self, event: event_pb2.Event) -> None:
        """Apply and collect an event made by `event`."""
        self.state.apply(event)
        self._events.append(event)

    def emit(self, kind: str, message: Message, *, caused: bool = False) -> int:
        """Apply and collect an event of this kind; returns its seq."""
        event = self.event(caused=caused)
        getattr(event, kind).CopyFrom(message)
        self.put(event)
        return event.seq

    def effect(self, effect: Effect) -> None:
        """Collect an effect."""
        self._effects.append(effect)

    def take(self, receipt: frame_pb2.Receipt | None = None) -> Decision:
        """The finished decision."""
        if not self._events and not self._effects and receipt is None:
            return NOTHING
        decision = Decision(tuple(self._events), tuple(self._effects), receipt)
        self._events, self._effects = [], []
        return decision
