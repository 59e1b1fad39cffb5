"""The outcome of each race, in either order: see `test_races.py`."""

from __future__ import annotations

from typing import Final

RACES: Final[dict[tuple[str, str], tuple[str, str]]] = {
    ("message", "message"): (
        (
            "ACCEPTED (QUEUE) + ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends "
            "STOP; turn 2 starts; turn 2 ends STOP; turn 3 starts; turn 3 ends STOP"
        ),
        (
            "ACCEPTED (QUEUE) + ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends "
            "STOP; turn 2 starts; turn 2 ends STOP; turn 3 starts; turn 3 ends STOP"
        ),
    ),
    ("message", "interrupt"): (
        (
            "ACCEPTED (QUEUE) + ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1"
            " ends INTERRUPTED; turn 2 starts; turn 2 ends STOP"
        ),
        (
            "ACCEPTED + ACCEPTED (QUEUE): call CANCELLED; turn 1 interrupted, keeps 5; turn 1"
            " ends INTERRUPTED; turn 2 starts; turn 2 ends STOP"
        ),
    ),
    ("message", "steer"): (
        (
            "ACCEPTED (QUEUE) + ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2"
            " starts; turn 2 ends STOP; turn 3 starts; turn 3 ends STOP"
        ),
        (
            "ACCEPTED (STEER) + ACCEPTED (QUEUE): call COMPLETED; turn 1 ends STEERED; turn 2"
            " starts; turn 2 ends STOP; turn 3 starts; turn 3 ends STOP"
        ),
    ),
    ("message", "result"): (
        (
            "ACCEPTED (QUEUE) + ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP; turn"
            " 2 starts; turn 2 ends STOP"
        ),
        (
            "ACCEPTED + ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends STOP; turn"
            " 2 starts; turn 2 ends STOP"
        ),
    ),
    ("message", "timeout"): (
        (
            "ACCEPTED (QUEUE): call TIMED_OUT; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
        (
            "ACCEPTED (QUEUE): call TIMED_OUT; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
    ),
    ("message", "end"): (
        (
            "ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
        (
            "ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
    ),
    ("message", "failure"): (
        ("ACCEPTED (QUEUE): call CANCELLED; turn 1 ends ERROR; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (QUEUE): call CANCELLED; turn 1 ends ERROR; turn 2 starts; turn 2 ends STOP"),
    ),
    ("message", "disconnect"): (
        "ACCEPTED (QUEUE): call CANCELLED; turn 1 ends DISCONNECTED; 1 waiting",
        "ACCEPTED (QUEUE): call CANCELLED; turn 1 ends DISCONNECTED; 1 waiting",
    ),
    ("message", "resume"): (
        (
            "ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
        (
            "ACCEPTED (QUEUE): call COMPLETED; asked again; turn 1 ends STOP; turn 2 starts; "
            "turn 2 ends STOP"
        ),
    ),
    ("message", "deadline"): (
        ("ACCEPTED (QUEUE): call CANCELLED; turn 1 ends DEADLINE; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (QUEUE): call CANCELLED; turn 1 ends DEADLINE; turn 2 starts; turn 2 ends STOP"),
    ),
    ("message", "delete"): (
        "ACCEPTED (QUEUE): call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "REJECTED: call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("interrupt", "interrupt"): (
        ("ACCEPTED + STALE: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED"),
        ("ACCEPTED + STALE: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED"),
    ),
    ("interrupt", "steer"): (
        (
            "ACCEPTED + ACCEPTED (QUEUE): call CANCELLED; turn 1 interrupted, keeps 5; turn 1"
            " ends INTERRUPTED; turn 2 starts; turn 2 ends STOP"
        ),
        (
            "ACCEPTED (STEER) + ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1"
            " ends INTERRUPTED; turn 2 starts; turn 2 ends STOP"
        ),
    ),
    ("interrupt", "result"): (
        (
            "ACCEPTED + ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; call late, "
            "COMPLETED; turn 1 ends INTERRUPTED"
        ),
        (
            "ACCEPTED + ACCEPTED: call COMPLETED; turn 1 interrupted, keeps 5; turn 1 ends "
            "INTERRUPTED"
        ),
    ),
    ("interrupt", "timeout"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "ACCEPTED: call TIMED_OUT; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
    ),
    ("interrupt", "end"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
    ),
    ("interrupt", "failure"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "STALE: call CANCELLED; turn 1 ends ERROR",
    ),
    ("interrupt", "disconnect"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "STALE: call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("interrupt", "resume"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
    ),
    ("interrupt", "deadline"): (
        "ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED",
        "STALE: call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("interrupt", "delete"): (
        ("ACCEPTED: call CANCELLED; turn 1 interrupted, keeps 5; turn 1 ends INTERRUPTED; closed"),
        "REJECTED: call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("steer", "steer"): (
        (
            "ACCEPTED (STEER) + ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2"
            " starts; turn 2 ends STOP"
        ),
        (
            "ACCEPTED (STEER) + ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2"
            " starts; turn 2 ends STOP"
        ),
    ),
    ("steer", "result"): (
        (
            "ACCEPTED (STEER) + ACCEPTED: call COMPLETED; turn 1 ends STEERED; turn 2 starts;"
            " turn 2 ends STOP"
        ),
        (
            "ACCEPTED + ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2 starts;"
            " turn 2 ends STOP"
        ),
    ),
    ("steer", "timeout"): (
        ("ACCEPTED (STEER): call TIMED_OUT; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (STEER): call TIMED_OUT; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
    ),
    ("steer", "end"): (
        ("ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
    ),
    ("steer", "failure"): (
        ("ACCEPTED (STEER): call CANCELLED; turn 1 ends ERROR; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (QUEUE): call CANCELLED; turn 1 ends ERROR; turn 2 starts; turn 2 ends STOP"),
    ),
    ("steer", "disconnect"): (
        "ACCEPTED (STEER): call CANCELLED; turn 1 ends DISCONNECTED; 1 waiting",
        "ACCEPTED (STEER): call CANCELLED; turn 1 ends DISCONNECTED; 1 waiting",
    ),
    ("steer", "resume"): (
        ("ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (STEER): call COMPLETED; turn 1 ends STEERED; turn 2 starts; turn 2 ends STOP"),
    ),
    ("steer", "deadline"): (
        ("ACCEPTED (STEER): call CANCELLED; turn 1 ends DEADLINE; turn 2 starts; turn 2 ends STOP"),
        ("ACCEPTED (STEER): call CANCELLED; turn 1 ends DEADLINE; turn 2 starts; turn 2 ends STOP"),
    ),
    ("steer", "delete"): (
        "ACCEPTED (STEER): call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "REJECTED: call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("result", "result"): (
        (
            "ACCEPTED + ACCEPTED: call COMPLETED; call late, COMPLETED; asked again; turn 1 "
            "ends STOP"
        ),
        (
            "ACCEPTED + ACCEPTED: call COMPLETED; call late, COMPLETED; asked again; turn 1 "
            "ends STOP"
        ),
    ),
    ("result", "timeout"): (
        "ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP",
        "ACCEPTED: call TIMED_OUT; call late, COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("result", "end"): (
        "ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP",
        "ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("result", "failure"): (
        "ACCEPTED: call COMPLETED; turn 1 ends ERROR",
        "ACCEPTED: call CANCELLED; turn 1 ends ERROR; call late, COMPLETED",
    ),
    ("result", "disconnect"): (
        "ACCEPTED: call COMPLETED; turn 1 ends DISCONNECTED",
        "ACCEPTED: call CANCELLED; call late, COMPLETED; turn 1 ends DISCONNECTED",
    ),
    ("result", "resume"): (
        "ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP",
        "ACCEPTED: call COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("result", "deadline"): (
        "ACCEPTED: call COMPLETED; turn 1 ends DEADLINE",
        "ACCEPTED: call CANCELLED; call late, COMPLETED; turn 1 ends DEADLINE",
    ),
    ("result", "delete"): (
        "ACCEPTED: call COMPLETED; turn 1 ends DISCONNECTED; closed",
        "REJECTED: call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("timeout", "timeout"): (
        "call TIMED_OUT; asked again; turn 1 ends STOP",
        "call TIMED_OUT; asked again; turn 1 ends STOP",
    ),
    ("timeout", "end"): (
        "call TIMED_OUT; asked again; turn 1 ends STOP",
        "call TIMED_OUT; asked again; turn 1 ends STOP",
    ),
    ("timeout", "failure"): (
        "call TIMED_OUT; turn 1 ends ERROR",
        "call CANCELLED; turn 1 ends ERROR",
    ),
    ("timeout", "disconnect"): (
        "call TIMED_OUT; turn 1 ends DISCONNECTED",
        "call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("timeout", "resume"): (
        "call TIMED_OUT; asked again; turn 1 ends STOP",
        "call TIMED_OUT; asked again; turn 1 ends STOP",
    ),
    ("timeout", "deadline"): (
        "call TIMED_OUT; turn 1 ends DEADLINE",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("timeout", "delete"): (
        "call TIMED_OUT; turn 1 ends DISCONNECTED; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("end", "end"): (
        "call COMPLETED; asked again; turn 1 ends STOP",
        "call COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("end", "failure"): (
        "call COMPLETED; asked again; turn 1 ends STOP",
        "call CANCELLED; turn 1 ends ERROR",
    ),
    ("end", "disconnect"): (
        "call CANCELLED; turn 1 ends DISCONNECTED",
        "call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("end", "resume"): (
        "call COMPLETED; asked again; turn 1 ends STOP",
        "call COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("end", "deadline"): (
        "call CANCELLED; turn 1 ends DEADLINE",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("end", "delete"): (
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("failure", "failure"): (
        "call CANCELLED; turn 1 ends ERROR",
        "call CANCELLED; turn 1 ends ERROR",
    ),
    ("failure", "disconnect"): (
        "call CANCELLED; turn 1 ends ERROR",
        "call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("failure", "resume"): (
        "call CANCELLED; turn 1 ends ERROR",
        "call CANCELLED; turn 1 ends ERROR",
    ),
    ("failure", "deadline"): (
        "call CANCELLED; turn 1 ends ERROR",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("failure", "delete"): (
        "call CANCELLED; turn 1 ends ERROR; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("disconnect", "disconnect"): (
        "call CANCELLED; turn 1 ends DISCONNECTED",
        "call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("disconnect", "resume"): (
        "call CANCELLED; turn 1 ends DISCONNECTED",
        "call CANCELLED; turn 1 ends DISCONNECTED",
    ),
    ("disconnect", "deadline"): (
        "call CANCELLED; turn 1 ends DISCONNECTED",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("disconnect", "delete"): (
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("resume", "resume"): (
        "call COMPLETED; asked again; turn 1 ends STOP",
        "call COMPLETED; asked again; turn 1 ends STOP",
    ),
    ("resume", "deadline"): (
        "call CANCELLED; turn 1 ends DEADLINE",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("resume", "delete"): (
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("deadline", "deadline"): (
        "call CANCELLED; turn 1 ends DEADLINE",
        "call CANCELLED; turn 1 ends DEADLINE",
    ),
    ("deadline", "delete"): (
        "call CANCELLED; turn 1 ends DEADLINE; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
    ("delete", "delete"): (
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
        "call CANCELLED; turn 1 ends DISCONNECTED; closed",
    ),
}
