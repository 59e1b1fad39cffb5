"""All turns of a session and their calls, of which those of the past are lines until asked for.

A checkpoint tells each turn in a line. Reading one takes about ten microseconds, and a session may
have ten thousand turns of which nobody asks for any. So a turn stays its line until somebody wants
it: for a prompt, a snapshot, a fork, or for a result that comes late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from backchannel.session import turn_record
from backchannel.session.encoding import damaged
from backchannel.session.turn import Call, Turn


class TurnBook(Sequence[Turn]):
    """All turns, oldest first; the last one may be running.

    Any of them may raise `LOG_CORRUPT` when it is first asked for.

    Args:
        lines: Turns that a checkpoint tells, none of which has an open call.
        places: For each of their calls, of which turn it is.
    """

    __slots__ = ("_turns", "calls")

    def __init__(self, lines: Sequence[bytes] = (), places: Mapping[str, int] | None = None):
        self._turns: list[Turn | bytes] = list(lines)
        self.calls = CallBook(self, dict(places or {}))

    def append(self, turn: Turn) -> None:
        """Another turn, with the calls that it has already."""
        self._turns.append(turn)
        for call in turn.calls:
            self.calls.add(call)

    def line(self, place: int) -> bytes:
        """A turn's part of a checkpoint, kept for the next one."""
        turn = self._turns[place]
        if isinstance(turn, bytes):
            return turn
        if not turn.line:
            turn.line = turn_record.write(turn)
        return turn.line

    def has_open_call(self, place: int) -> bool:
        """Whether a turn has a call without a result."""
        turn = self._turns[place]
        return not isinstance(turn, bytes) and bool(turn.open_calls)

    def _turn(self, place: int) -> Turn:
        turn = self._turns[place]
        if isinstance(turn, bytes):
            turn = self._turns[place] = turn_record.read(turn)
            self.calls.restore(turn.calls)
        return turn

    @overload
    def __getitem__(self, place: int) -> Turn: ...

    @overload
    def __getitem__(self, place: slice) -> list[Turn]: ...

    def __getitem__(self, place: int | slice) -> Turn | list[Turn]:
        if isinstance(place, slice):
            return [self._turn(one) for one in range(*place.indices(len(self._turns)))]
        return self._turn(place)

    def __len__(self) -> int:
        return len(self._turns)


class CallBook(Mapping[str, Call]):
    """Every call of every turn by its id, oldest first."""

    __slots__ = ("_places", "_read", "_turns")

    def __init__(self, turns: TurnBook, places: dict[str, int]) -> None:
        self._turns = turns
        self._places = places
        self._read: dict[str, Call] = {}

    @property
    def places(self) -> Mapping[str, int]:
        """For each call, of which turn it is."""
        return self._places

    def add(self, call: Call) -> None:
        """A new call of the last turn."""
        self._places[call.call_id] = len(self._turns) - 1
        self._read[call.call_id] = call

    def restore(self, calls: Sequence[Call]) -> None:
        """Calls of a turn that was read."""
        for call in calls:
            self._read[call.call_id] = call

    def __getitem__(self, call_id: str) -> Call:
        call = self._read.get(call_id)
        if call is None:
            _ = self._turns[self._places[call_id]]
            call = self._read.get(call_id)
            if call is None:
                raise damaged()
        return call

    def __contains__(self, call_id: object) -> bool:
        return call_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
