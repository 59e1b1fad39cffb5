"""`python -m bench`: what the service costs and how fast it is, in parts that can be chosen.

Prints tables. With `--markdown docs/performance.md` it also keeps the figures in
docs/performance.json, draws docs/performance/*.svg, and writes the page anew from the figures of
all parts, those of earlier runs included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.page import Part, Section, Store
from bench.parts import DEFAULT, PARTS, Options


def _table(section: Section) -> Table:
    table = Table(title=section.title)
    for place, column in enumerate(section.columns):
        table.add_column(column, justify="left" if section.is_text(place) else "right")
    for row in section.rows:
        table.add_row(*row)
    return table


async def _main(what: list[str], options: Options, page: Path | None) -> int:
    # Wide enough for whole words, also where nobody looks.
    console = Console(width=max(Console().width, 160))
    store = Store.read(page) if page is not None else Store()
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    load = os.getloadavg()[0]
    begin = time.monotonic()
    failed = 0
    for name in what:
        with console.status(f"{name}…") as status:

            def progress(doing: str, name: str = name, status: object = status) -> None:
                line = f"{time.monotonic() - begin:4.0f} s  {name}: {doing}"
                if console.is_terminal:
                    status.update(line)  # type: ignore[attr-defined]  # rich's, kept out of the signature
                else:
                    print(line, flush=True)

            progress("begins")
            try:
                outcome = await PARTS[name](options, progress)
            except Exception:  # noqa: BLE001 - other parts do not depend on it, and take minutes
                console.print(f"{name} failed:", style="bold red")
                console.print_exception(max_frames=4)
                failed += 1
                continue
        for section in outcome.sections:
            console.print(_table(section))
        store.put(Part.of(name, command, load, outcome))
        if page is not None:
            store.write(page, outcome.plots)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        metavar="PART",
        help=f"{', '.join(PARTS)} (default: {', '.join(DEFAULT)})",
    )
    usual = Options()
    parser.add_argument("--seed", type=int, default=usual.seed, help="of all that is random")
    parser.add_argument(
        "--quick", action="store_true", help="a little of everything, to see that it works"
    )
    parser.add_argument("--no-house", action="store_true", help="leave the house model out")
    parser.add_argument("--sessions", type=int, default=usual.sessions, help="load: at a time")
    parser.add_argument("--rate", type=float, default=usual.rate, help="tokens a second of each")
    parser.add_argument(
        "--rounds", type=int, default=usual.rounds, help="load, tokens: interleaved"
    )
    parser.add_argument("--turns", type=int, default=usual.turns, help="load: of each session")
    parser.add_argument("--turn-tokens", type=int, default=usual.turn_tokens, help="load: a turn")
    parser.add_argument("--heap", type=int, default=usual.heap, help="memory: sessions")
    parser.add_argument("--samples", type=int, default=usual.samples, help="stops: a row")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="lag: a row")
    parser.add_argument("--streams", type=int, default=usual.streams, help="tokens: at a time")
    parser.add_argument("--tokens", type=int, default=usual.tokens, help="tokens: a stream")
    parser.add_argument("--markdown", type=Path, help="the page to write")
    arguments = parser.parse_args()
    for name in arguments.what:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    given = vars(_arguments())
    chosen, markdown = given.pop("what") or list(DEFAULT), given.pop("markdown")
    quick, house = given.pop("quick"), not given.pop("no_house")
    wanted = Options(house=house, **given)
    sys.exit(asyncio.run(_main(chosen, wanted.quick() if quick else wanted, markdown)))
