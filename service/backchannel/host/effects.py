"""What a session's decisions have set going: engine runs, and the one timer.

A decision is carried out in the order that a stop asks for: the engine hears of it first, then the
events go to the ledger, then everything else begins.
"""

from __future__ import annotations

from typing import Protocol

from backchannel.host.clock import Clock, Timer
from backchannel.host.ledger import Ledger
from backchannel.host.runner import EngineRun, Listener, Runner
from backchannel.observer import SessionWatch
from backchannel.session.decision import Decision, HoldEngine, SetTimer, StartEngine, StopEngine


class Decider(Listener, Protocol):
    """Whose decisions they are: the session. It hears what the engine says, and the timer."""

    def tick(self) -> None:
        """The time has come that a decision had asked for."""
        ...


class Effects:
    """Carries out decisions, and keeps what they have begun.

    Args:
        decider: Who hears of what comes of it.
        ledger: Where the events go.
        runner: Asks engines.
        clock: For the timer.
        watch: Watches the runs; None if nobody does.
    """

    __slots__ = ("_clock", "_decider", "_ledger", "_runner", "_runs", "_timer", "_watch")

    def __init__(
        self,
        decider: Decider,
        ledger: Ledger,
        runner: Runner,
        clock: Clock,
        watch: SessionWatch | None,
    ) -> None:
        self._decider = decider
        self._ledger = ledger
        self._runner = runner
        self._clock = clock
        self._watch = watch
        self._runs: dict[str, EngineRun] = {}
        self._timer: Timer | None = None

    def perform(self, decision: Decision) -> None:
        """Do what was decided."""
        effects = decision.effects
        for effect in effects:
            if type(effect) is StopEngine:
                run = self._runs.get(effect.run_id)
                if run is not None:
                    run.stop()
        if decision.events:
            self._ledger.write(decision.events)
        for effect in effects:
            if type(effect) is StartEngine:
                watch = self._watch.run(effect) if self._watch is not None else None
                self._runs[effect.run_id] = self._runner.start(effect, self._decider, watch)
            elif type(effect) is HoldEngine:
                held = self._runs.get(effect.run_id)
                if held is not None:
                    held.hold(effect.hold)
            elif type(effect) is SetTimer:
                self._set_timer(effect.at_ns)

    def ended(self, run_id: str) -> None:
        """This run has said its last."""
        self._runs.pop(run_id, None)

    @property
    def nothing_goes_on(self) -> bool:
        """Whether no engine is at work and no timer is set."""
        return not self._runs and self._timer is None

    def abandon(self) -> None:
        """Stop everything; nothing more is heard of it."""
        for run in self._runs.values():
            run.abandon()
        self._runs.clear()
        self._set_timer(None)

    def _set_timer(self, at_ns: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_ns is not None:
            self._timer = self._clock.call_at(at_ns, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._decider.tick()
