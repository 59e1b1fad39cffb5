"""The life of a session as one table: which event may follow in which phase, and what comes then.

Everything that decides a phase is in this file. The fold refuses a log that does not follow the
table (`DATA_LOSS`), and `docs/states.md` is drawn from it (`python -m backchannel.session.table`).

Phases are durable: they follow from the events alone. Whether an engine is really at work is the
owner's knowledge, not the log's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where a session is."""

    NEW = "new"
    IDLE = "idle"
    GENERATING = "generating"
    WAITING_FOR_TOOLS = "waiting_for_tools"
    STOPPING = "stopping"
    CLOSED = "closed"


class Guard(StrEnum):
    """A step whose target depends on what is left after the event."""

    AWAITED_CALLS_LEFT = "waiting_for_tools while the turn waits for a call, else generating"


_NEW, _IDLE, _CLOSED = Phase.NEW, Phase.IDLE, Phase.CLOSED
_GEN, _WAIT, _STOP = Phase.GENERATING, Phase.WAITING_FOR_TOOLS, Phase.STOPPING

TRANSITIONS: Final[Mapping[tuple[Phase, str], Phase | Guard]] = {
    (_NEW, "session_opened"): _IDLE,
    # Nothing runs.
    (_IDLE, "input_accepted"): _IDLE,
    (_IDLE, "input_withdrawn"): _IDLE,
    (_IDLE, "turn_started"): _GEN,
    (_IDLE, "turn_truncated"): _IDLE,
    (_IDLE, "tool_call_progressed"): _IDLE,  # of a call that outlived its turn, as are the next
    (_IDLE, "tool_call_output"): _IDLE,
    (_IDLE, "tool_call_cancelled"): _IDLE,
    (_IDLE, "tool_call_finished"): _IDLE,  # or a late result
    (_IDLE, "session_closed"): _CLOSED,
    # A turn runs and waits for no call.
    (_GEN, "input_accepted"): _GEN,
    (_GEN, "input_withdrawn"): _GEN,
    (_GEN, "output_delta"): _GEN,
    (_GEN, "tool_call_started"): _GEN,
    (_GEN, "tool_call_delta"): _GEN,
    (_GEN, "tool_call_ready"): Guard.AWAITED_CALLS_LEFT,
    (_GEN, "tool_call_progressed"): _GEN,  # of a call that is not waited for, as are the next
    (_GEN, "tool_call_output"): _GEN,
    (_GEN, "tool_call_cancelled"): _GEN,
    (_GEN, "tool_call_finished"): _GEN,  # or a late result
    (_GEN, "context_trimmed"): _GEN,
    (_GEN, "turn_recovered"): _GEN,
    (_GEN, "turn_interrupted"): _STOP,
    (_GEN, "turn_finished"): _IDLE,
    # A turn runs and waits for calls; the model may still be writing this round.
    (_WAIT, "input_accepted"): _WAIT,
    (_WAIT, "input_withdrawn"): _WAIT,
    (_WAIT, "output_delta"): _WAIT,
    (_WAIT, "tool_call_started"): _WAIT,
    (_WAIT, "tool_call_delta"): _WAIT,
    (_WAIT, "tool_call_ready"): _WAIT,
    (_WAIT, "tool_call_progressed"): _WAIT,
    (_WAIT, "tool_call_output"): _WAIT,
    (_WAIT, "tool_call_cancelled"): _WAIT,
    (_WAIT, "tool_call_finished"): Guard.AWAITED_CALLS_LEFT,
    (_WAIT, "turn_recovered"): _WAIT,
    (_WAIT, "turn_interrupted"): _STOP,  # leaving its calls to finish
    # Interrupted; the engine has not yet confirmed. No delta of this turn any more.
    (_STOP, "input_accepted"): _STOP,
    (_STOP, "input_withdrawn"): _STOP,
    (_STOP, "tool_call_progressed"): _STOP,  # of a call that was left to finish
    (_STOP, "tool_call_output"): _STOP,
    (_STOP, "tool_call_cancelled"): _STOP,
    (_STOP, "tool_call_finished"): _STOP,  # or a late result
    (_STOP, "turn_finished"): _IDLE,
}


def diagram() -> str:
    """The table as a page with a Mermaid state diagram."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (phase, kind), target in TRANSITIONS.items():
        targets = [_WAIT, _GEN] if isinstance(target, Guard) else [target]
        for one in targets:
            label = kind
            if isinstance(target, Guard):
                label += " (calls waited for)" if one is _WAIT else " (last call)"
            arrows.setdefault((phase.value, one.value), []).append(label)
    lines = [
        "# The phases of a session",
        "",
        "Made from the transition table in `service/backchannel/session/table.py` by",
        "`python -m backchannel.session.table`; do not edit. An event that has no arrow",
        "here cannot be in a log at that place.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> new",
    ]
    for (source, target_name), labels in arrows.items():
        lines.append(f"    {source} --> {target_name}: {', '.join(labels)}")
    lines += ["    closed --> [*]", "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(diagram())
