"""The page of figures: what was measured, how, and how to read it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

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
Each server in turn gets the same load, and its CPU time (user and system, all threads) is divided
by the tokens that its clients read. Everything counts, with ours also creating the session,
attaching and ending the turn. The bare loop is the least that a grpc.aio server can do: it sleeps
until a token is due, builds a frame as large as ours and writes it; no session, no log, no engine.
The ratio is taken within a round, and the median over the rounds. Aim: ≤ 1.5. *Events a frame*
shows that nothing was saved by merging: 1.00 is one event a frame.

Where a token's time goes, by sampling profiles (`py-spy --native`, `perf`), the largest first:

1. **gRPC's write**: `context.write`, `sendmsg` with the loopback's work in it, gRPC's polling
   thread, and the wake of the event loop by it. The bare loop has all of that too.
2. **The core's decision**: building the `OutputDelta`, folding it into the state, making it bytes;
   about 5 µs with warm caches.
3. **Rounds of the event loop** on the way from the engine's timer by the committer to the reader.
   Appends that carry only output keep a distance (`commit_pace_s`), so that sessions share them.

The SQLite log adds its writer thread: two hand-overs an append, and for each session in it one
page copied into the write-ahead log.
""",
}
"""How to read each table."""


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its words.

    Attributes:
        about: `stops`, `engines`, `lag`, `doors` or `tokens`.
    """

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a part of the page."""
        lines = ["| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "|".join([" --- "] + [" ---: "] * (len(self.columns) - 1)) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        table = "\n".join(lines)
        return f"## {self.title}\n\n{table}\n\n{_WORDS[self.about]}"


@dataclass(slots=True)
class Page:
    """All that one run has measured.

    Attributes:
        command: What was run.
        load: The machine's load average before that.
    """

    command: str
    load: float
    sections: list[Section] = field(default_factory=list)

    def markdown(self) -> str:
        """The page."""
        head = (
            "# Performance\n\n"
            "Written by `make bench`; run it on your own machine.\n\n"
            f"* Command: `{self.command}`\n"
            f"* Machine: {os.cpu_count()} cores ({platform.machine()}, {platform.system()}), load "
            f"average before the run {self.load:.1f}. Python {platform.python_version()}, grpcio "
            f"{version('grpcio')}, protobuf {version('protobuf')}.\n"
            "* Clients and servers share the machine, each in a process of its own: read ratios, "
            "not absolute times.\n"
        )
        return "\n".join([head, *(section.markdown() for section in self.sections)])
