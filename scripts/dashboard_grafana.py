"""The dashboard as Grafana's JSON, and how Grafana reads it.

The classic model, which every Grafana since version 10 imports:
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scripts import tools
from scripts.dashboard_panels import GLANCE, ROWS, Panel, Row

FILE: Final = tools.ROOT / "deploy" / "observability" / "grafana" / "backchannel.json"
WIDTH: Final = 24
_HEIGHT: Final = 8
_WIDE: Final = 8
_BIG_HEIGHT: Final = 4
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WORDS: Final = (
    "Each row answers the question above it; the (i) of a panel says what is good. A dashed line"
    " is where an alert, or a promise to users, has its bound. `docs/dashboard.md` of Backchannel"
    " tells more, and what to do when an alert fires."
)


def document() -> dict[str, Any]:
    """The dashboard."""
    return {
        "title": "Backchannel",
        "description": "What users feel, what is paid for, what is stuck, and whether the machine"
        " is well.",
        "uid": "backchannel",
        "tags": ["backchannel", "llm"],
        "schemaVersion": 39,
        "version": 2,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource(), _instance()]},
        "panels": list(_placed()),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(document(), indent=2) + "\n"


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
    }


def _instance() -> dict[str, Any]:
    query = "label_values(backchannel_sessions, instance)"
    return {
        "name": "instance",
        "label": "Instance",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instances"},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
        "refresh": 2,
        "sort": 1,
    }


def _placed() -> Iterator[dict[str, Any]]:
    """The panels, from left to right and from top to bottom."""
    yield {
        "id": 1,
        "type": "text",
        "title": "",
        "transparent": True,
        "gridPos": {"h": 2, "w": WIDTH, "x": 0, "y": 0},
        "options": {"mode": "markdown", "content": _WORDS},
    }
    number, y = 2, 2
    for row in ROWS:
        yield _heading(number, row, y)
        number, y = number + 1, y + 1
        big = row is GLANCE
        w, h = (WIDTH // len(row.panels), _BIG_HEIGHT) if big else (_WIDE, _HEIGHT)
        for place, panel in enumerate(row.panels):
            down, right = divmod(place * w, WIDTH)
            at = {"h": h, "w": w, "x": right, "y": y + down * h}
            yield {"id": number, "gridPos": at, **_panel(panel)}
            number += 1
        y += -(-len(row.panels) * w // WIDTH) * h


def _heading(number: int, row: Row, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": row.question,
        "collapsed": False,
        "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
        "panels": [],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    alerts = f"\n\nAlerts: {', '.join(panel.alerts)}." if panel.alerts else ""
    return {
        "type": "stat" if panel.big else "timeseries",
        "title": panel.title,
        "description": panel.meaning + alerts,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _BIG_OPTIONS if panel.big else _OPTIONS,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": query.selected,
                "legendFormat": query.legend,
                "range": True,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


_OPTIONS: Final = {
    "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_BIG_OPTIONS: Final = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "orientation": "auto",
    "textMode": "value",
}


def _field(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"color": "green" if panel.big else "transparent", "value": None}
    ]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    field: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.big:
        return field | {"color": {"mode": "thresholds"}}
    return field | {
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 2 if not panel.stacked else 1,
            "fillOpacity": 40 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.threshold is None else "dashed"},
        },
    }


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Zoom:
    """What Grafana fills into queries.

    Attributes:
        step_s: Between two points of a curve.
        scrape_s: Between two scrapes, as the data source is told.
        instance: Which instances, as a regular expression.
    """

    step_s: float
    scrape_s: float
    instance: str = ".*"

    @property
    def rate_interval_s(self) -> float:
        """Grafana's `$__rate_interval`: long enough for a rate, and no part of it left out.

        https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/
        """
        return max(self.step_s + self.scrape_s, 4 * self.scrape_s)

    def fill(self, expr: str) -> str:
        """A query with all variables replaced.

        Raises:
            ValueError: It has one that is not known here.
        """
        values = {
            "__rate_interval": f"{round(self.rate_interval_s * 1000)}ms",
            "instance": self.instance,
        }

        def value(found: re.Match[str]) -> str:
            try:
                return values[found[1]]
            except KeyError:
                raise ValueError(f"nothing to fill in for {found[0]} of {expr}") from None

        # A variable begins with a letter: "$1" is the business of label_replace.
        return re.sub(r"\$\{?([a-zA-Z_]\w*)\}?", value, expr)


def name(legend: str, labels: Mapping[str, str]) -> str:
    """What Grafana calls a series."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend).strip()
