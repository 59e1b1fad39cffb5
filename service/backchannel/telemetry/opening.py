"""Telemetry as a configuration asks for it; without what it needs installed there may be none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from backchannel.observer import SILENT, Observer
from backchannel.telemetry.config import TelemetryConfig

_log = structlog.get_logger(__name__)


class TelemetryError(Exception):
    """What was asked for cannot be had; the message says why and what to do."""


@asynccontextmanager
async def watched(config: TelemetryConfig) -> AsyncIterator[Observer]:
    """The observer for a server, exporting while this is open.

    What nobody asked for in words is done without where it cannot be had.

    Raises:
        TelemetryError: The extra `telemetry` is not installed, or the metrics' port is taken.
    """
    if not config.on:
        yield SILENT
        return
    try:
        from backchannel.telemetry.telemetry import MetricsPortError, Telemetry
    except ImportError as error:
        if config.wanted:
            raise TelemetryError(
                f"metrics and traces need {error.name}: pip install 'backchannel[telemetry]', or"
                " say --metrics-listen off and name no collector"
            ) from None
        yield SILENT
        return
    async with AsyncExitStack() as exits:
        try:
            telemetry = await exits.enter_async_context(Telemetry(config))
        except MetricsPortError as error:
            if config.metrics_listen is not None:
                raise TelemetryError(str(error)) from None
            _log.debug("no_metrics", why=str(error))
            config = replace(config, metrics_listen="off")
            if not config.on:
                yield SILENT
                return
            telemetry = await exits.enter_async_context(Telemetry(config))
        yield telemetry
