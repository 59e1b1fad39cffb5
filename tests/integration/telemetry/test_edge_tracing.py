"""Envoy between a client and a turn: one trace from the first to the last."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backchannel.edge.rendering import template_folder
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.telemetry import Telemetry
from tests.support.edge import create, events, say, site
from tests.support.otlp import collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SEND = "backchannel.v1.ConversationService/Send"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


async def test_a_browsers_click_envoy_and_the_turn_are_one_trace(tmp_path: Path) -> None:
    overlay = (template_folder() / "overlays" / "tracing.yaml").read_text()
    async with collector() as taken:
        mine = tmp_path / "tracing.yaml"
        assert "port_value: 4317" in overlay
        mine.write_text(overlay.replace("4317", taken.address.rpartition(":")[2]))
        settings = TelemetryConfig(
            metrics_listen="off", otlp_metrics=False, otlp_endpoint=taken.address
        )
        async with (
            Telemetry(settings) as telemetry,
            site(observer=telemetry, overlays=(str(mine),)) as where,
            where.client(headers=TRACEPARENT) as browser,
        ):
            session_id = await create(browser, model="scripted/echo")
            await say(browser, session_id, "one two")
            async with events(browser, session_id) as stream:
                await stream.until("turn_finished")

            def whole() -> bool:
                known = {span.id for span in taken.spans}
                calls = taken.named(SEND)
                return bool(taken.named("turn") and calls and calls[0].parent in known)

            async with asyncio.timeout(15):
                while not whole():  # Envoy sends now and then.
                    await telemetry.flush()
                    await asyncio.sleep(0.05)
    turn, sent = taken.one("turn"), taken.one(SEND)
    (hop,) = [span for span in taken.spans if span.id == sent.parent]
    assert turn.trace == sent.trace == hop.trace == TRACE
    assert hop.parent == PARENT
    assert turn.parent == sent.id
    # Whoever reads traces must not be able to read sessions.
    envoys = [span for span in taken.spans if span.parent == PARENT]
    assert envoys
    assert session_id not in str([span.raw for span in envoys])


FRIEND = "https://friend.example"
STATE = "friend=t61rcWkgMzE"


@pytest.mark.parametrize("path", ["/v1/sessions", f"/{SEND}"])
async def test_a_page_of_an_allowed_origin_may_say_which_trace_it_is_in(path: str) -> None:
    asked = "content-type,traceparent,tracestate"
    preflight = {
        "origin": FRIEND,
        "access-control-request-method": "POST",
        "access-control-request-headers": asked,
    }
    async with site(origins=(FRIEND,)) as where, where.client() as browser:
        answer = await browser.options(path, headers=preflight)
    assert answer.headers["access-control-allow-origin"] == FRIEND
    # What a browser looks for before it sends them.
    assert set(asked.split(",")) <= set(answer.headers["access-control-allow-headers"].split(", "))


async def test_what_a_page_says_of_its_trace_arrives_through_envoy() -> None:
    page = {
        "origin": FRIEND,
        "sec-fetch-site": "cross-site",
        "tracestate": STATE,
        **TRACEPARENT,
    }
    async with collector() as taken:
        settings = TelemetryConfig(
            metrics_listen="off", otlp_metrics=False, otlp_endpoint=taken.address
        )
        async with (
            Telemetry(settings) as telemetry,
            site(origins=(FRIEND,), observer=telemetry) as where,
            where.client(headers=page) as browser,
        ):
            session_id = await create(browser, model="scripted/echo")
            await say(browser, session_id, "one two")
            async with events(browser, session_id) as stream:
                await stream.until("turn_finished")
    sent, turn = taken.one(SEND), taken.one("turn")
    assert (sent.trace, sent.parent) == (TRACE, PARENT)
    assert sent.raw.trace_state == turn.raw.trace_state == STATE
    assert turn.parent == sent.id
