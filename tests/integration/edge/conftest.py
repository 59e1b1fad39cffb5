"""One server with one Envoy in front, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.edge import Site, site


@pytest.fixture
async def edge() -> AsyncIterator[Site]:
    """A server in this process with a real Envoy in front."""
    async with site() as running:
        yield running


@pytest.fixture
async def browser(edge: Site) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP/1.1."""
    async with edge.client() as client:
        yield client


@pytest.fixture(params=[1, 2], ids=["http1", "h2c"])
async def either(edge: Site, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP/1.1, and then HTTP/2 without TLS, at the same port."""
    async with edge.client(request.param) as client:
        yield client
