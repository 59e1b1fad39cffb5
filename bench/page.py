"""The page of figures: what was measured, how, and how to read it.

The figures are kept beside it as JSON, by parts, so that a part can be measured anew by itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

_WORDS: Final = {
    "stops": """\
*Client's view*: a client interrupts a running turn at a random moment. The time runs from writing
the `Interrupt` until `TurnInterrupted` has been read back, so it holds the way there, the
decision, the commit to SQLite and the way back; `TurnFinished` follows when the engine has
confirmed. *Wasted* is what the turn's bill says: tokens computed that never became an event. *Bill
balances*: generated = delivered + wasted, in every sample. Aims: p99 ≤ 10 ms to `TurnInterrupted`;
after the engine was told at most one more step of the model (`scripted`: one token).
""",
    "engines": """\
*Engine's view*, in one process without a session. *Since told*: what the engine computed after it
knew. `scripted` is told by `stop()` itself; llama.cpp when its callback answers "stop", at the end
of the step that is under way when `stop()` is called. By then its next step has often begun: that
one is finished, and none after it. Aim: p99 ≤ 1. More shows a machine so busy that the thread which
carries the answer waits for a CPU while the model, with steps of 0.3 ms, computes on. *Since
stop()*: the engine's total less what it had handed out when `stop()` was called, so with the step
under way and what was on its way to the reader; this is what a bill calls wasted. *Exact*: the
share of samples in which the engine vouches for its count.
""",
    "lag": """\
A timer every 5 ms on the server's event loop, and by how much it comes too late, while so many
sessions on the house model say something again and again, without a pause. The log is SQLite, the
clients share the machine. Aim: p99 ≤ 10 ms with 16 sessions.
""",
    "doors": """\
One reader at a time, through a real Envoy, over loopback, without TLS. *Gap error*: by how much the
time between two tokens at the reader differs from the time between their commits. *Leaving
noticed*: from the reader's going until the service has let go of it, while nothing is being
written. Service and readers share one process and its event loop, so the figures err upwards.
""",
    "tokens": """\
As above, but by clients in Python and with everything counted: ours also creates the session,
attaches, and ends the turn. The ratio is taken within a round, and the median over the rounds.
*Events a frame* shows that nothing was saved by merging: 1.00 is one event a frame.
""",
    "cost": """\
Open loop: when each turn is asked is fixed before the first of them, whatever the servers do. CPU
time is the server process's, user and system, all threads, from the first turn to the end of the
last, by the tokens that were read. The bare servers are the least that each library can do: they
wait until a token is due, build a message as large as ours and write it; no session, no log, no
engine, no stop. *Ratios* are taken within a round, the median over the rounds is told; aim, for
gRPC: ≤ 1.5. The service tells its metrics all the while, as it does by default. gRPC-Web and
server-sent events have Envoy between; its work is a column of its own. *Tokens a message*: 1.00
says that nothing was saved by putting tokens together.
""",
    "latency": """\
*Added*: each token, from when it was due (the turn's planned moment plus its place by the rate)
until the client had read it; no wait is left out, neither the driver's nor the server's (no
coordinated omission). It holds the way of the question to the engine. *On its way*: from the
server's own timestamp, set when the session decided, until it was read; of it up to 4 ms is the
distance that appends of output keep (`commit_pace_s`), so that sessions share them. *TTFT added*:
the first token, from the moment at which the turn was planned; the engine itself takes no time.
Percentiles are of HDR histograms with three digits, over the tokens of all rounds.
""",
    "door stops": """\
From the planned moment of a stop, 0.2 to 0.7 s into its turn, until `TurnInterrupted` was read: the
way there, the decision, the commit, and the way back. All sessions stop turns of theirs at the
same time. A bare server can only be cut off, and cannot say when it has stopped.
""",
    "overload": """\
What a core does when it has no rest: tokens of a session that have piled up go out together, so
that a token gets cheaper the more there is to do. A server below about 90 % was held up by the
driver, or by an Envoy that shares a core with it, and could do more.
""",
    "driver": """\
Tokens must not wait for whoever measures them. *Asked late*: by how much a turn was asked after its
planned moment; that is part of every added latency above.
""",
    "telemetry": """\
The same server with nothing watched, with metrics as Prometheus reads them, and with the traces of
every turn as well, both sent on to a collector. Aim: no more than 1.05.
""",
    "memory": """\
Resident memory of the server with so many sessions open on it, one reader each, before they have
said anything and after each has had a turn, less what it held before. Sessions at rest leave memory
after a while (`idle_before_passive_s`) if nobody reads them.
""",
    "profile": """\
Samples of all threads that were at work, C code included (`py-spy --native`). Each belongs to the
innermost frame that says whose work it is; C code of Python, libc or protobuf works for its caller.
""",
}
"""How to read each table."""

_PICTURES: Final = {
    "cost": "CPU of the server for each token, by way",
    "latency": "Added latency over percentiles, by way",
    "profile": "Share of the server's CPU time, by whose work it is",
}
"""What each picture shows, for those who cannot see it."""

_ORDER: Final = (
    "load",
    "memory",
    "profile",
    "telemetry",
    "stops",
    "lag",
    "tokens",
    "doors",
)


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its words and pictures.

    Attributes:
        about: Which words.
        load: Under what it was measured, where the title does not say.
        pictures: Names of pictures.
    """

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    load: str = ""
    pictures: Sequence[str] = ()

    def is_text(self, column: int) -> bool:
        """Whether a column is read, not compared."""
        return column == 0 or (self.about == "profile" and column > 1)

    def markdown(self, folder: str) -> str:
        """As a part of the page."""
        lines = ["| " + " | ".join(self.columns) + " |"]
        marks = [" --- " if self.is_text(at) else " ---: " for at in range(len(self.columns))]
        lines.append("|" + "|".join(marks) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        blocks = [f"## {self.title}"]
        blocks += [f"{self.load[0].upper()}{self.load[1:]}."] if self.load else []
        blocks += ["\n".join(lines)]
        blocks += [f"![{_PICTURES[name]}]({folder}/{name}.svg)" for name in self.pictures]
        return "\n\n".join([*blocks, _WORDS[self.about]])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What measuring a part has given.

    Attributes:
        sections: For people.
        words: What it means, a line each.
        figures: For programs.
        plots: SVG by name.
    """

    sections: Sequence[Section]
    words: Sequence[str] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """An outcome, and how it came about.

    Attributes:
        name: As on the command line.
        command: What was run.
        day: When, in UTC.
        machine: On what.
    """

    name: str
    command: str
    day: str
    machine: str
    words: Sequence[str]
    sections: Sequence[Section]
    figures: Mapping[str, object]

    @classmethod
    def of(cls, name: str, command: str, load: float, outcome: Outcome) -> Self:
        """What was measured just now.

        Args:
            name: The part.
            command: What was run.
            load: The machine's load average before that.
            outcome: What came of it.
        """
        machine = (
            f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), load average "
            f"before the run {load:.1f}; Python {platform.python_version()}, grpcio "
            f"{version('grpcio')}, protobuf {version('protobuf')}"
        )
        day = datetime.now(UTC).date().isoformat()
        figures = outcome.figures
        return cls(name, command, day, machine, outcome.words, outcome.sections, figures)


class Store:
    """All parts, each as it was measured last.

    Args:
        parts: By name.
    """

    def __init__(self, parts: Mapping[str, Part] | None = None) -> None:
        self._parts = dict(parts or {})

    @classmethod
    def read(cls, page: Path) -> Self:
        """What is kept beside a page; nothing, where there is none yet."""
        path = page.with_suffix(".json")
        if not path.exists():
            return cls()
        kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for part in kept.values():
            part["sections"] = [Section(**section) for section in part["sections"]]
        return cls({name: Part(**part) for name, part in kept.items()})

    def put(self, part: Part) -> None:
        """Take in a part; it replaces what was measured before."""
        self._parts[part.name] = part

    def write(self, page: Path, plots: Mapping[str, str]) -> None:
        """Write the page, what it is made of, and new pictures."""
        kept = {part.name: dataclasses.asdict(part) for part in self._in_order()}
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        folder = page.with_suffix("")
        for name, svg in plots.items():
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        page.write_text(self.markdown(folder.name), encoding="utf-8")

    def markdown(self, folder: str) -> str:
        """The page."""
        parts = self._in_order()
        head = [
            "# Performance",
            (
                "Written by `make bench`; run it on your own machine, best with nothing else on "
                "it. `make bench ARGS='load'` measures one part anew, `ARGS='--help'` lists them; "
                "the same figures for programs are in [performance.json](performance.json)."
            ),
            "Clients, Envoy and servers share one machine: read ratios before absolute times.",
        ]
        words = [f"* {line}" for part in parts for line in part.words]
        if words:
            head += ["## In short", "\n".join(words)]
        body = [section.markdown(folder) for part in parts for section in part.sections]
        foot = ["## How it was measured"]
        foot += [
            "\n".join(
                f"* *{part.name}*: `{part.command}`, {part.day}, {part.machine}." for part in parts
            )
        ]
        return "\n\n".join(block.strip() for block in [*head, *body, *foot]) + "\n"

    def _in_order(self) -> list[Part]:
        return sorted(self._parts.values(), key=lambda part: _ORDER.index(part.name))
