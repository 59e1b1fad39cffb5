"""A real Prometheus scrapes a scenario in which every metric moves; rules and dashboard ask it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
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
from scripts import tools
from tests.support.proxies import free_port
from tests.support.server import START_S, config, connected
from tests.support.stream import Client, create, interrupt, say

OBSERVABILITY = tools.ROOT / "deploy" / "observability"
RULES = OBSERVABILITY / "prometheus" / "rules.yaml"
DASHBOARD = OBSERVABILITY / "grafana" / "backchannel.json"
SCRAPE_S = 0.2
# The pulse looks once a second: what is to be seen has to last a little longer.
SEEN_S = 1.6
BRIEF = Duration(nanos=100_000_000)

pytestmark = pytest.mark.needs("prometheus", "promtool")


def promtool(*arguments: str | Path, folder: Path = OBSERVABILITY / "prometheus") -> str:
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


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.AsyncClient(base_url=url, timeout=10)

    async def query(self, query: str) -> list[dict[str, Any]]:
        """An instant query's result.

        Raises:
            AssertionError: Prometheus does not understand it.
        """
        answer = (await self.client.get("/api/v1/query", params={"query": query})).json()
        assert answer["status"] == "success", (query, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def total(self, query: str) -> float:
        """The sum of all series."""
        return sum(float(series["value"][1]) for series in await self.query(query))

    async def rules(self) -> list[dict[str, Any]]:
        answer = (await self.client.get("/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """Prometheus with our rules, evaluated as often as it scrapes."""
    settings = yaml.safe_load((OBSERVABILITY / "prometheus" / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": f"{SCRAPE_S * 1000:g}ms", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(RULES)]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    program, port = tools.TOOLS["prometheus"].find(), free_port()
    assert program is not None
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - forking does not wait for anything
            [
                str(program),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=output,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(START_S):
            while not await _ready(running):
                assert process.poll() is None, (folder / "output").read_text()
                await asyncio.sleep(0.05)
        yield running
    finally:
        await running.client.aclose()
        process.kill()
        process.wait()


async def _ready(running: Prometheus) -> bool:
    """Whether it scrapes; it begins some seconds after its start."""
    try:
        if (await running.client.get("/-/ready")).status_code != 200:
            return False
    except httpx.TransportError:
        return False
    return await running.total("up") > 0


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


def dashboard_queries() -> list[tuple[str, str]]:
    """Each panel's title and query, as Grafana would fill them in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in query, query
            found.append((panel["title"], query))
    return found


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
        prometheus(tmp_path, str(telemetry.address)) as running,
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


def test_each_alert_is_tested_and_says_what_to_do() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    tests = yaml.safe_load((RULES.parent / "rules_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"] for one in tests for case in one["alert_rule_test"] if case["exp_alerts"]
    }
    assert {alert["alert"] for alert in alerts} == fired
    assert all(alert["annotations"]["remedy"] for alert in alerts)


def test_the_dashboard_and_the_rules_ask_for_metrics_that_there_are() -> None:
    known = {metric.prometheus_name for metric in table.METRICS}
    asked = " ".join(query for _, query in dashboard_queries()) + RULES.read_text()
    names = re.findall(r"\b(?:gen_ai_server|backchannel|rpc_server)_\w+(?=[\[{])", asked)
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} <= known
