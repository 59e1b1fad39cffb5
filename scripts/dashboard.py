"""The dashboard for Grafana, its page, and a picture of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "service")]

from scripts import dashboard_grafana, dashboard_page  # noqa: E402 - found once the path is set
from scripts.dashboard_grafana import Zoom  # noqa: E402 - the same
from scripts.dashboard_picture import Curve, Drawing  # noqa: E402 - the same
from scripts.dashboard_prometheus import Prometheus, prometheus  # noqa: E402 - the same
from scripts.dashboard_traffic import Traffic, scene  # noqa: E402 - the same

PICTURE: Final = ROOT / "docs" / "dashboard.svg"
SCRAPE_S: Final = 2.0
_POINTS: Final = 120
_HELP: Final = """\
write     deploy/observability/grafana/backchannel.json and docs/dashboard.md, from the panels in
          scripts/dashboard_panels.py and the alerts in deploy/observability/prometheus/rules.yaml;
          after a change to either
picture   docs/dashboard.svg: runs `backchannel serve` under some minutes of traffic, with a real
          Prometheus that scrapes it every 2 s, asks that Prometheus the dashboard's queries over
          the whole time, and draws the answers as the dashboard lays them out; Prometheus has to be
          installed (Debian: apt-get install prometheus)

    python scripts/dashboard.py write
    python scripts/dashboard.py picture --minutes 4
    python scripts/dashboard.py picture --keep answers.json   # and again, without the traffic:
    python scripts/dashboard.py picture --from answers.json
"""


def write() -> None:
    """Make the two files anew."""
    dashboard_grafana.FILE.write_text(dashboard_grafana.text(), encoding="utf-8")
    dashboard_page.FILE.write_text(dashboard_page.text(), encoding="utf-8")


async def answers(minutes: float, seed: int) -> dict[str, Any]:
    """Run the traffic, and ask what the dashboard asks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prometheus").mkdir()
        async with (
            scene(folder) as place,
            prometheus(folder / "prometheus", place.metrics, scrape_s=SCRAPE_S) as running,
        ):
            start_s = time.time()
            # The dice need not be safe, they have to fall the same way every time.
            traffic = Traffic(place, minutes * 60, random.Random(seed))  # noqa: S311
            await traffic.run()
            await asyncio.sleep(SCRAPE_S)
            print(", ".join(f"{what}: {times}" for what, times in traffic.happened.most_common()))
            return await asked(running, start_s, time.time())


async def asked(running: Prometheus, start_s: float, end_s: float) -> dict[str, Any]:
    """What Prometheus answers to each panel's queries over a time."""
    dashboard = json.loads(dashboard_grafana.FILE.read_text(encoding="utf-8"))
    step_s = math.ceil((end_s - start_s) / _POINTS)
    zoom = Zoom(step_s=step_s, scrape_s=running.scrape_s)
    panels: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for panel in dashboard["panels"]:
        curves = panels.setdefault(str(panel["id"]), [])
        for target in panel.get("targets", ()):
            found = await running.query_range(zoom.fill(target["expr"]), start_s, end_s, step_s)
            for series in sorted(found, key=lambda one: sorted(one["metric"].items())):
                points = [(float(when), float(value)) for when, value in series["values"]]
                legend = dashboard_grafana.name(target["legendFormat"], series["metric"])
                curves.append((legend, [point for point in points if math.isfinite(point[1])]))
    return {"start_s": start_s, "end_s": end_s, "step_s": step_s, "panels": panels}


def drawn(told: dict[str, Any]) -> str:
    """The picture of what was answered.

    Raises:
        ValueError: A panel has nothing to show.
    """
    dashboard = json.loads(dashboard_grafana.FILE.read_text(encoding="utf-8"))
    curves = {
        int(number): [Curve(name, tuple(map(tuple, points))) for name, points in found if points]
        for number, found in told["panels"].items()
    }
    for panel in dashboard["panels"]:
        if panel.get("targets") and not curves[panel["id"]]:
            raise ValueError(f"{panel['title']}: no data in all that time")
    minutes = (told["end_s"] - told["start_s"]) / 60
    caption = (
        f"{minutes:.0f} minutes of made traffic, measured and stored by Prometheus; drawn from this"
        " dashboard’s queries by scripts/dashboard.py, not by Grafana"
    )
    times = (told["start_s"], told["end_s"], told["step_s"])
    return Drawing(dashboard, curves, *times, caption).svg()


def main(words: Sequence[str] | None = None) -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python scripts/dashboard.py",
        description=__doc__,
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["write", "picture"], help="what to make; see below")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="how long the traffic lasts; default: 4"
    )
    parser.add_argument("--seed", type=int, default=7, help="another number, other visitors")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep what Prometheus answered, too"
    )
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="kept", help="draw what was kept, no traffic"
    )
    given = parser.parse_args(words)
    if given.what == "write":
        write()
        return 0
    if given.kept:
        told = json.loads(given.kept.read_text(encoding="utf-8"))
    else:
        told = asyncio.run(answers(given.minutes, given.seed))
    if given.keep:
        given.keep.write_text(json.dumps(told), encoding="utf-8")
    PICTURE.write_text(drawn(told), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
