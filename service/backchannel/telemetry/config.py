"""What can be set about telemetry."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from backchannel.listen import Address

METRICS_LISTEN: Final = "127.0.0.1:9464"
_OFF: Final = ("", "off")


def _endpoint() -> str:
    return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """Where traces and metrics go.

    Attributes:
        metrics_listen: Where Prometheus finds the metrics, as `host:port`; `off` for nowhere; None
            for `METRICS_LISTEN` where that is free and the extra `telemetry` is installed.
        otlp_endpoint: A collector that takes OTLP over gRPC, as `http://host:4317`, or `https` for
            TLS; empty for none. Default: the variable OTEL_EXPORTER_OTLP_ENDPOINT.
        otlp_metrics: Whether metrics go there, too, and not only traces.
        otlp_interval_s: How often metrics go there.
        sample_ratio: Of turns and calls whose client has not decided it, how many are traced.
        content: Whether prompts, answers and what tools take and give are written into traces.
        service_name: What the service is called there.
        node_id: What tells this process from its like there; by default a new one at each start.
    """

    metrics_listen: str | None = None
    otlp_endpoint: str = field(default_factory=_endpoint)
    otlp_metrics: bool = True
    otlp_interval_s: float = 15.0
    sample_ratio: float = 1.0
    content: bool = False
    service_name: str = "backchannel"
    node_id: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: Names the setting and the remedy.
        """
        if self.metrics_address is not None and self.metrics_address.port is None:
            raise ValueError(
                "metrics_listen: Prometheus cannot reach a Unix socket; write host:port"
            )
        if not 0 <= self.sample_ratio <= 1:
            raise ValueError(f"sample_ratio must be between 0 and 1, not {self.sample_ratio}")
        if not self.otlp_interval_s >= 0.1:
            raise ValueError(f"otlp_interval_s must be at least 0.1, not {self.otlp_interval_s}")
        if self.otlp_endpoint:
            parts = urlsplit(self.otlp_endpoint)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError(
                    f"otlp_endpoint: write http://host:4317, or https, not {self.otlp_endpoint}"
                )

    @property
    def metrics_address(self) -> Address | None:
        """`metrics_listen`, understood; None for nowhere."""
        listen = METRICS_LISTEN if self.metrics_listen is None else self.metrics_listen
        return None if listen in _OFF else Address.parse(listen)

    @property
    def wanted(self) -> bool:
        """Whether somebody asked for telemetry in words: then it must be there."""
        return bool(self.otlp_endpoint) or self.metrics_listen not in (None, *_OFF)

    @property
    def on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.otlp_endpoint) or self.metrics_address is not None
