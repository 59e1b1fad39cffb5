"""docs/dashboard.md, from the panels and the alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from scripts import tools
from scripts.dashboard_panels import LEFT_OUT, ROWS, Panel, Row
from scripts.dashboard_prometheus import RULES

FILE: Final = tools.ROOT / "docs" / "dashboard.md"
_HEAD: Final = """\
# The dashboard and the alerts

Made by `python scripts/dashboard.py write` from `scripts/dashboard_panels.py` and
`deploy/observability/prometheus/rules.yaml`; to change it, change these.

![The dashboard under four minutes of made traffic](dashboard.svg)

The picture is drawn from the dashboard's queries by `python scripts/dashboard.py picture`, not by
Grafana: a real server under made traffic, a real Prometheus that scrapes it, and what that
Prometheus answered to the queries in `deploy/observability/grafana/backchannel.json`, laid out as
that file says. Grafana's own colours and fonts differ. Four things happen in it on purpose: one
reader takes nothing from 0:48 to 2:00, the network is cut at 1:41, an engine fails more than it
should from 2:12 to 2:43, and from 3:12 another program holds the log's file for 6.5 s, longer than
the server waits for it.

## Set it up

1. Let Prometheus scrape the server, and give it the rules. `deploy/observability/prometheus` has
   both; beside one server on the same machine `prometheus --config.file=prometheus.yaml`, started
   in that folder, is all. The job's name has to be `backchannel`.
2. In Grafana (10 or newer) choose *Dashboards → New → Import*, upload
   `deploy/observability/grafana/backchannel.json`, and choose that Prometheus at the top of the
   dashboard. Or let Grafana find it by itself: a file in its `provisioning/dashboards/` such as

       apiVersion: 1
       providers:
         - name: backchannel
           type: file
           options: {path: /etc/backchannel/grafana}

   with the JSON in that folder.
3. In the data source's settings set *Scrape interval* to that of Prometheus (10 s in our file), or
   rates have holes.

A percentile is as fine as its histogram's buckets ([metrics.md](metrics.md#buckets)): a curve that
runs level lies somewhere within one.

*Instance* at the top chooses one process or several. [metrics.md](metrics.md) tells of each metric.
"""
_ALERTS: Final = """
## When an alert fires

`severity: page` is for somebody's night, `ticket` for somebody's week. Objectives and bounds are in
`deploy/observability/prometheus/rules.yaml`, to be set to what you promise; a budget burns too fast
only if it does so over a long window and still does over a short one, so that an alert comes late
enough to be true and goes as soon as it is over
(https://sre.google/workbook/alerting-on-slos/).
"""
_FIRST: Final = (
    "Compare *Wait for an engine* with *Time to first token, by model*. If waiting is most of it,"
    " the engine has too few places: raise `max_parallel`, add an engine, or refuse sooner with"
    " `max_waiting`. If one model alone is slow without waiting, it is its engine. If all are slow,"
    " see *Commit duration* and *Event loop lag*."
)
_GAP: Final = (
    "Outputs wait for the engine, the log or the loop. Compare *Time per token, by model* (one"
    " model: its engine), *Commit duration* (the log's disk) and *Event loop lag* (the process has"
    " too much to do)."
)
REMEDIES: Final[Mapping[str, str]] = {
    "FirstTokenBudgetBurnsFast": _FIRST,
    "FirstTokenBudgetBurns": f"As above, with time to think. {_FIRST}",
    "GapBudgetBurnsFast": _GAP,
    "GapBudgetBurns": f"As above, with time to think. {_GAP}",
    "TurnsFail": "*Engine errors* names the engine and the reason;"
    " [engines.md](engines.md) tells what reasons mean and how an alias asks another engine when"
    " one fails. If *Commit errors* rises at the same time it is the log: see"
    " [CommitsFail](#commitsfail).",
    "TokensWasted": "An engine that takes long to stop computes for nobody: see *Time an engine"
    " takes to stop*. Many interrupts without that: answers are longer than people want; lower"
    " `max_tokens`.",
    "ToolStuck": "Tools are run by clients. Find out whether the one that runs them is there"
    " (*Readers, by door*), and give the tool shorter time-outs (`idle_timeout`, `timeout`): a call"
    " that has timed out lets its turn go on.",
    "ToolsTimeOut": "As above; *Wait for a tool at p99* tells how long those take that do end. A"
    " client that works on a long call says so by `ToolProgress`, which begins its idle time anew.",
    "CommitsFail": "Look at the disk and at the server's log lines `append_failed`."
    " `LOG_UNAVAILABLE`: a full disk, or another program that holds the file; it goes on by itself"
    " once that ends. `LOG_CORRUPT`: stop, and restore ([logs.md](logs.md)).",
    "EventLoopLags": "One process uses one core. Spread sessions over more processes"
    " ([edge.md](edge.md)), and see whether something else uses this one's core."
    " [performance.md](performance.md) tells how much one takes.",
    "BackchannelDown": "See whether the process runs and whether Prometheus reaches its"
    " `metrics_listen`. A process that drains answers until its end.",
}
"""What to do when an alert fires."""


def text() -> str:
    """The page."""
    return "".join([_HEAD, *map(_row, ROWS), _left_out(), _ALERTS, *map(_alert, alerts())])


def alerts() -> list[dict[str, Any]]:
    """The alerts, as the rules have them."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def anchor(heading: str) -> str:
    """Where a heading of a page is linked."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _row(row: Row) -> str:
    panels = "".join(
        f"| {panel.title} | {panel.meaning} | {_links(panel)} |\n" for panel in row.panels
    )
    return (
        f"\n## {row.question}\n\n{row.answer}\n\n"
        f"| panel | what it tells | alerts |\n|---|---|---|\n{panels}"
    )


def _links(panel: Panel) -> str:
    return ", ".join(f"[{alert}](#{anchor(alert)})" for alert in panel.alerts)


def _left_out() -> str:
    reasons = "".join(f"- `{metric}`: {reason}.\n" for metric, reason in LEFT_OUT.items())
    return f"\n## What is not on it\n\n{reasons}"


def _alert(rule: dict[str, Any]) -> str:
    name = rule["alert"]
    held = f", for {rule['for']}" if "for" in rule else ""
    expr = "".join(f"    {line}\n" for line in rule["expr"].strip().splitlines())
    seen = "".join(f"- *{panel}* ({row})\n" for row, panel in _panels(name))
    return (
        f"\n### {name}\n\n{REMEDIES[name]}\n\nFires ({rule['labels']['severity']}{held}) when\n\n"
        f"{expr}\nWatch\n\n{seen}"
    )


def _panels(alert: str) -> Iterator[tuple[str, str]]:
    for row in ROWS:
        for panel in row.panels:
            if alert in panel.alerts:
                yield row.question, panel.title
