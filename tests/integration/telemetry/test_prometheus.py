"""A real Prometheus scrapes a scenario in which every metric moves; rules and dashboard ask it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration

from backchannel.errors import BackchannelError, Reason
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Append
from backchannel.rpc import server as server_module
from backchannel.rpc.server import Server
from backchannel.telemetry import table
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.table import Kind
from backchannel.telemetry.telemetry import Telemetry
from backchannel.v1 import frame_pb2, session_pb2
from scripts import dashboard_grafana, dashboard_page, dashboard_picture, tools
from scripts.dashboard_grafana import Zoom
from scripts.dashboard_panels import LEFT_OUT, ROWS
from scripts.dashboard_prometheus import RULES, Prometheus, prometheus
from tests.support.server import config, connected
from tests.support.stream import Client, create, interrupt, say

SCRAPE_S = 0.2
# The pulse looks once a second: what is to be seen has to last a little longer.
SEEN_S = 1.6
BRIEF = Duration(nanos=100_000_000)

pytestmark = pytest.mark.needs("prometheus", "promtool")


def promtool(*arguments: str | Path, folder: Path = RULES.parent) -> str:
    program = tools.TOOLS["promtool"].find()
    assert program is not None
    ran = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


class MoodyLog(MemoryLog):
    """A log that takes its time, and refuses when told to."""

    refuses = False
    takes_s = 0.0

    async def append(self, batch: Sequence[Append]) -> None:
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if self.refuses:
            raise BackchannelError(Reason.LOG_UNAVAILABLE, "no room")
        await super().append(batch)


# --- the scenario -----------------------------------------------------------------------------


async def plain_turns(client: Client) -> None:
    async with client.converse(create(model="scripted/echo"), say("one two three")) as stream:
        opened = (await stream.event("session_opened")).session_opened.session
        last_seq = (await stream.event("turn_finished")).seq
    async with client.attach(opened.session_id, last_seq - 2) as stream:
        await stream.event("turn_finished")
    async with client.attach(opened.session_id, snapshot=True) as stream:
        await stream.until(lambda s: any(frame.HasField("snapshot") for frame in s.frames))


async def interrupted_turn(client: Client) -> None:
    opening = create(model="scripted/count", engine_options={"rate": "50"})
    async with client.converse(opening, say("go")) as stream:
        started = (await stream.event("turn_started")).turn_started
        seq = (await stream.event("output_delta", 5)).seq
        await stream.send(frame_pb2.ClientFrame(ack=frame_pb2.Ack(displayed_seq=seq)))
        await stream.send(interrupt(started.turn_id))
        await stream.event("turn_finished")


async def tools_that_are_late(client: Client) -> None:
    # One that times out, and whose result comes all the same.
    tool = session_pb2.ToolSpec(name="look", idle_timeout=Duration(seconds=2))
    async with client.converse(create(model="scripted/tool", tools=[tool]), say("x")) as stream:
        ready = (await stream.event("tool_call_ready")).tool_call_ready
        await stream.event("turn_finished")
        result = session_pb2.ToolResult(call_id=ready.call_id, json="1")
        await stream.send(frame_pb2.ClientFrame(frame_id="late", tool_result=result))
        await stream.receipt("late")


async def engines_that_fail_and_queue(client: Client) -> None:
    async with client.converse(create(model="scripted/fail"), say("go")) as stream:
        await stream.event("turn_finished")
    narrow: dict[str, Any] = {"model": "narrow/count", "engine_options": {"rate": "20"}}
    begin = say("go", sampling=session_pb2.Sampling(max_tokens=50))
    async with (
        client.converse(create(**narrow), begin) as one,
        client.converse(create(**narrow), begin) as other,
    ):
        await one.event("turn_finished")
        await other.event("turn_finished")


async def refused_frame(client: Client) -> None:
    session = await client.create(model="scripted/echo")
    await client.send(session.session_id, say("x", expected_turn_id="turn_that_never_was"))


async def readers_and_logs_in_trouble(client: Client, server: Server, log: MoodyLog) -> None:
    session = await client.create(model="scripted/count", engine_options={"rate": "50"})
    live = await server.host.sessions.get(session.session_id)
    with live.attach(0, snapshot=False):  # It takes nothing.
        log.takes_s = 0.3
        await client.send(
            session.session_id, say("go", sampling=session_pb2.Sampling(max_tokens=100))
        )
        await asyncio.sleep(SEEN_S)
        log.takes_s, log.refuses = 0.0, True
        await asyncio.sleep(0.3)
        log.refuses = False
        await asyncio.sleep(SEEN_S)


async def scenario(client: Client, server: Server, log: MoodyLog) -> None:
    """Everything that a metric counts."""
    await asyncio.gather(
        plain_turns(client),
        interrupted_turn(client),
        tools_that_are_late(client),
        engines_that_fail_and_queue(client),
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await client.get("there-is-no-such-session")
    await refused_frame(client)
    await readers_and_logs_in_trouble(client, server, log)
    # A last scrape, and an evaluation of the rules.
    await asyncio.sleep(SEEN_S)


async def moved(running: Prometheus, metric: table.Metric) -> float:
    """What Prometheus says of a metric: how often, or how much at most."""
    name = metric.prometheus_name
    if metric.kind is Kind.HISTOGRAM:
        return await running.total(f"{name}_count")
    if metric.kind is Kind.COUNTER:
        return await running.total(name)
    return await running.total(f"max_over_time({name}[5m])")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dashboard_grafana.FILE.read_text())
    return found


def with_queries(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that show figures."""
    return [panel for panel in told["panels"] if panel["type"] not in {"row", "text"}]


def dashboard_queries() -> list[tuple[str, str]]:
    """Each panel's title and query, as Grafana would fill them in."""
    zoom = Zoom(step_s=0.1, scrape_s=15)
    return [
        (panel["title"], zoom.fill(target["expr"]))
        for panel in with_queries(dashboard())
        for target in panel["targets"]
    ]


@pytest.mark.timeout(120)
async def test_prometheus_sees_every_metric_move_and_answers_every_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MoodyLog()
    monkeypatch.setattr(server_module, "open_log", lambda _: log)
    settings = config(
        engine=("scripted", "narrow"),
        engine_options={"narrow": {"adapter": "scripted", "max_parallel": 1}},
        sessions={"heartbeat_s": 0.5},
    )
    async with (
        Telemetry(TelemetryConfig(metrics_listen="127.0.0.1:0", otlp_endpoint="")) as telemetry,
        Server(settings, observer=telemetry) as server,
        connected(server.address) as client,
        prometheus(tmp_path, str(telemetry.address), scrape_s=SCRAPE_S) as running,
    ):
        await scenario(client, server, log)
        rows = [(metric, await moved(running, metric)) for metric in table.METRICS]
        with capsys.disabled():
            print()
            for metric, value in rows:
                print(f"  {metric.name:38} {metric.kind.value:10} {value:10.4g}")
        assert [metric.name for metric, value in rows if not value > 0] == []

        # Nothing that tells one session, turn or person from another.
        text = (await running.client.get(f"http://{telemetry.address}/metrics")).text
        assert not re.search(r"(session|turn|call)_[\w-]{24}", text)
        declared = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        assert {metric.prometheus_name for metric in table.METRICS} <= declared

        for title, query in dashboard_queries():
            assert await running.query(query), f"{title}: nothing for {query}"

        rules = await running.rules()
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        for rule in rules:
            if rule["type"] == "recording":
                assert await running.query(rule["name"]), f"{rule['name']} records nothing"
        firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
        assert "CommitsFail" in firing
        assert "BackchannelDown" not in firing


def test_the_rules_are_good_and_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("check", "rules", "rules.yaml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yaml")
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yaml")


def alert_tests(*, fires: bool) -> set[str]:
    tests = yaml.safe_load((RULES.parent / "rules_test.yaml").read_text())["tests"]
    cases = [case for one in tests for case in one["alert_rule_test"]]
    return {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires}


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    names = {alert["alert"] for alert in dashboard_page.alerts()}
    assert names == alert_tests(fires=True)
    assert names == alert_tests(fires=False)


def test_each_alert_says_what_to_do_and_where_more_is_said() -> None:
    page = dashboard_page.FILE.read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {f"docs/dashboard.md#{dashboard_page.anchor(heading)}" for heading in headings}
    for alert in dashboard_page.alerts():
        assert re.search(r"[^:]: \w", alert["annotations"]["summary"]), alert["alert"]
        assert alert["annotations"]["runbook"] in anchors
    names = {alert["alert"] for alert in dashboard_page.alerts()}
    assert names == set(dashboard_page.REMEDIES)
    assert names == {a for row in ROWS for panel in row.panels for a in panel.alerts}


def test_the_dashboard_and_its_page_are_what_the_panels_say() -> None:
    remedy = "run python scripts/dashboard.py write"
    assert dashboard_grafana.FILE.read_text() == dashboard_grafana.text(), remedy
    assert dashboard_page.FILE.read_text() == dashboard_page.text(), remedy


def test_each_panel_says_what_it_shows() -> None:
    told = dashboard()
    ids = [panel["id"] for panel in told["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in with_queries(told):
        assert panel["title"].strip()
        assert len(panel["description"]) > 10, panel["title"]
        # Raises for a unit that nobody has looked at.
        assert dashboard_picture.spelled(1.5, panel["fieldConfig"]["defaults"]["unit"])
        assert panel["targets"], panel["title"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), panel["title"]
        assert len(set(legends)) == len(legends), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def overlaps(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Panels that lie on one another, or beyond the edge."""
    found = []
    taken: dict[tuple[int, int], str] = {}
    for panel in told["panels"]:
        at, title = panel["gridPos"], panel["title"] or panel["type"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), title)
                if other is not title or x >= dashboard_grafana.WIDTH:
                    found.append((other, title))
    return found


def test_no_panel_lies_on_another() -> None:
    told = dashboard()
    assert overlaps(told) == []
    # That the check can fail.
    told["panels"][-1]["gridPos"]["x"] -= 1
    assert overlaps(told)


def test_every_metric_is_on_the_dashboard_or_left_out_for_a_reason() -> None:
    asked = " ".join(query for _, query in dashboard_queries())
    shown = {
        metric.name
        for metric in table.METRICS
        if re.search(rf"\b{metric.prometheus_name}(_bucket|_count|_sum)?\b", asked)
    }
    assert shown | set(LEFT_OUT) == {metric.name for metric in table.METRICS}
    assert shown.isdisjoint(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_the_dashboard_and_the_rules_ask_for_metrics_that_there_are() -> None:
    known = {metric.prometheus_name for metric in table.METRICS}
    asked = " ".join(query for _, query in dashboard_queries()) + RULES.read_text()
    names = re.findall(r"\b(?:gen_ai_server|backchannel|rpc_server)_\w+(?=[\[{])", asked)
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} <= known


def test_a_variable_that_nobody_fills_in_is_told() -> None:
    zoom = Zoom(step_s=2, scrape_s=2, instance="a")
    assert zoom.fill('rate(x{i=~"$instance"}[$__rate_interval])') == 'rate(x{i=~"a"}[8000ms])'
    with pytest.raises(ValueError, match=r"\$job"):
        zoom.fill('up{job="$job"}')
