"""Looking at servers' metrics, again and again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from backchannel.cli.exposition import Scrape, Window
from backchannel.cli.vitals import OURS

DEFAULT_PORT: Final = 9464
WINDOW_S: Final = 60.0
_TIMEOUT_S: Final = 3.0
_MAX_BYTES: Final = 16 * 1024 * 1024
# Metrics are fetched from where they were asked for, whatever proxy there is for the web.
_OPENER: Final = build_opener(ProxyHandler({}))


class ScrapeError(Exception):
    """A server's metrics cannot be had; the message says why."""


def metrics_url(address: str) -> str:
    """Where the metrics of `host`, `host:port` or a whole URL are.

    Raises:
        ValueError: It is no address.
    """
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{address!r} is no address; write host:port, or http://host:port/metrics")
    port = url.port  # Raises a ValueError of its own.
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    if port is None and "://" not in address:
        port = DEFAULT_PORT
    place = host if port is None else f"{host}:{port}"
    query = f"?{url.query}" if url.query else ""
    return f"{url.scheme}://{place}{url.path if url.path not in ('', '/') else '/metrics'}{query}"


def fetch(url: str, clock: Callable[[], float] = time.monotonic) -> Scrape:
    """Look at one server, now. Blocks.

    Raises:
        ScrapeError: It does not answer, or not with the metrics of a Backchannel.
    """
    try:
        with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
            body: bytes = answer.read(_MAX_BYTES)
    except URLError as error:
        reason = error.reason
        raise ScrapeError(
            reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
        ) from None
    except HTTPException:
        raise ScrapeError("something answers there, but not over HTTP") from None
    except OSError as error:
        raise ScrapeError(error.strerror or str(error)) from None
    try:
        scrape = Scrape.of(body.decode(), clock())
    except ValueError:
        raise ScrapeError("something answers there, but not with metrics") from None
    if OURS not in scrape.values and not any(
        name.startswith("backchannel_") for name in scrape.values
    ):
        raise ScrapeError("the metrics there are not those of a Backchannel")
    return scrape


@dataclass
class Watched:
    """One server, as looked at for the last while.

    Args:
        name: What it is called on the screen.
        url: Where its metrics are.
        trouble: Why it did not answer when last looked at; empty if it did.
    """

    name: str
    url: str
    trouble: str = ""
    _scrapes: deque[Scrape] = field(default_factory=deque)

    def look(self, window_s: float = WINDOW_S) -> None:
        """Look at it, now. Blocks."""
        try:
            self.take(fetch(self.url), window_s)
        except ScrapeError as error:
            # What was before the gap says nothing of now.
            self._scrapes.clear()
            self.trouble = str(error)

    def take(self, scrape: Scrape, window_s: float = WINDOW_S) -> None:
        """Keep a look, and forget those that are too old to begin a window."""
        self.trouble = ""
        self._scrapes.append(scrape)
        while len(self._scrapes) > 2 and scrape.time_s - self._scrapes[1].time_s >= window_s:
            self._scrapes.popleft()

    @property
    def window(self) -> Window | None:
        """From the oldest look to the newest; None if it does not answer."""
        if not self._scrapes:
            return None
        first = self._scrapes[0] if len(self._scrapes) > 1 else None
        return Window(first, self._scrapes[-1])
