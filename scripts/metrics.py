"""Write docs/metrics.md from the table in service/backchannel/telemetry/table.py.

python scripts/metrics.py
"""

from __future__ import annotations

from pathlib import Path

from backchannel.telemetry.table import METRICS, Kind, Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

HEAD = """\
# Metrics

Made by `python scripts/metrics.py` from `service/backchannel/telemetry/table.py`; to change it,
change the table.

`backchannel serve` shows them to Prometheus at `http://127.0.0.1:9464/metrics` where that port is
free and `backchannel[telemetry]` is installed; `--metrics-listen` names another address, or `off`.
They tell numbers and nobody's words, so an address that other machines reach takes no further
word. With `--otlp-endpoint` a collector gets them, too, every `otlp_interval_s` (15 s).

No label holds an id of a session, a turn or a user, nor a name that a client may choose: a metric
has as many series as there are models, doors and reasons, and what comes beyond 500 is counted
together as `other`.

What happens for each token is counted in plain numbers and read when somebody collects;
[tracing.md](tracing.md) tells what that costs, and about spans. [dashboard.md](dashboard.md) shows
a dashboard for Grafana with a picture of it, and what to do when an alert fires; the files are
in [deploy/observability](../deploy/observability).

| metric | in Prometheus | kind | unit | labels |
|---|---|---|---|---|
"""


def page() -> str:
    """The page as it should be."""
    rows = "".join(map(_row, METRICS))
    meanings = "".join(f"- **`{metric.name}`**: {metric.meaning}\n" for metric in METRICS)
    buckets = "".join(
        f"| `{metric.name}` | {', '.join(f'{bound:g}' for bound in metric.buckets)} |\n"
        for metric in METRICS
        if metric.kind is Kind.HISTOGRAM
    )
    return (
        f"{HEAD}{rows}\n## What they mean\n\n{meanings}\n## Buckets\n\n"
        f"| histogram | upper bounds |\n|---|---|\n{buckets}"
    )


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return (
        f"| `{metric.name}` | `{metric.prometheus_name}` | {metric.kind} | {metric.unit} |"
        f" {labels} |\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
