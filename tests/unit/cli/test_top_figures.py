"""What metrics say of servers: parsed, subtracted, added up, told."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from backchannel.cli import vitals as vitals_module
from backchannel.cli.dashboard import Row, dashboard, headline, time
from backchannel.cli.exposition import Scrape, Window, quantile
from backchannel.cli.scraping import Watched, metrics_url
from backchannel.cli.vitals import SPREADS, Spread, Vitals
from backchannel.telemetry import table

INF = float("inf")


def scrape(text: str, time_s: float = 0.0) -> Scrape:
    return Scrape.of(text, time_s)


def window(before: str, after: str, seconds: float = 10.0) -> Window:
    return Window(scrape(before), scrape(after, seconds))


# --- the text --------------------------------------------------------------------------------


@given(
    labels=st.lists(st.text(max_size=8), min_size=1, max_size=5, unique=True),
    value=st.floats(allow_nan=False),
)
def test_it_reads_what_prometheus_own_client_writes(labels: list[str], value: float) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("a_gauge", "With\nlines \\ and all", ["label", "other"], registry=registry)
    for label in labels:
        gauge.labels(label, 'x,y="1"}').set(value)
    Counter("a_counter", "", registry=registry).inc(3)
    Histogram("a_histogram", "", registry=registry, buckets=(1, 2)).observe(1.5)
    text = generate_latest(registry).decode()
    expected: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of_name = expected.setdefault(sample.name, {})
            of_name[frozenset(sample.labels.items())] = sample.value
    assert scrape(text).values == expected


@pytest.mark.parametrize("text", ["<html>", "hello there you", 'a{b="c"} d', "a 1 2 3"])
def test_what_is_no_metrics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        scrape(text)


def test_it_reads_times_blanks_and_nothing() -> None:
    read = scrape('\n# HELP a b\n a_b 1\na{x="1"} 2.5e3 1395066363000\n'.replace("\n a_b", "\na_b"))
    assert read.values == {
        "a_b": {frozenset(): 1.0},
        "a": {frozenset({("x", "1")}): 2500.0},
    }
    assert scrape("").values == {}


# --- between two looks -----------------------------------------------------------------------


def test_a_counter_grows_by_the_difference() -> None:
    assert window("a 5", "a 8").grew("a") == 3
    assert window('a{x="1"} 5', 'a{x="1"} 8\na{x="2"} 2').grew("a") == 5


def test_a_counter_that_fell_began_anew() -> None:
    assert window("a 500", "a 8").grew("a") == 8


def test_what_was_never_told_or_seen_once_is_not_known() -> None:
    assert window("a 1", "a 1").grew("b") is None
    assert window("a 1", "a 1").now("b") is None
    assert Window(None, scrape("a 5")).grew("a") is None
    assert window("a 1", "a 1").grew("a") == 0


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (0.9, INF), (1.0, INF)]
)
def test_percentiles_lie_within_their_buckets(share: float, value: float) -> None:
    assert quantile({1.0: 4.0, 2.0: 7.0, INF: 8.0}, share) == pytest.approx(
        value if share != 0.75 else 1 + 2 / 3
    )


def test_a_histogram_without_values_has_no_percentiles() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, INF: 0.0}, 0.5) is None


@given(st.lists(st.floats(0, 12), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_percentile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.5, 1.0, 2.5, 5.0, 10.0, INF]
    buckets = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    told = quantile(buckets, share)
    true = sorted(values)[max(math.ceil(share * len(values) - 1e-9), 1) - 1]
    bound = next(bound for bound in bounds if true <= bound)
    below = max((one for one in bounds if one < bound), default=0.0)
    assert told is not None
    assert told == INF if bound == INF else below <= told <= bound


# --- vitals ----------------------------------------------------------------------------------

BUSY = """
backchannel_sessions 3
backchannel_turns_running 2
backchannel_tokens_total{fate="delivered",gen_ai_request_model="a/b"} 100
backchannel_tokens_total{fate="wasted",gen_ai_request_model="a/b"} 10
backchannel_turns_total{ending="stop"} 4
backchannel_turns_total{ending="error"} 1
backchannel_readers{rpc_method="x"} 2
backchannel_readers{rpc_method="y"} 1
backchannel_reader_lag 7
backchannel_tool_open 1
backchannel_tool_oldest_seconds 4.5
backchannel_engine_running{gen_ai_provider_name="gpu"} 2
backchannel_engine_waiting{gen_ai_provider_name="gpu"} 5
backchannel_commit_duration_seconds_bucket{le="0.001"} 90
backchannel_commit_duration_seconds_bucket{le="0.01"} 99
backchannel_commit_duration_seconds_bucket{le="+Inf"} 100
"""
LATER = (
    BUSY.replace("} 100\n", "} 390\n", 1)
    .replace('"wasted",gen_ai_request_model="a/b"} 10', '"wasted",gen_ai_request_model="a/b"} 20')
    .replace('"stop"} 4', '"stop"} 9')
)


def test_a_server_is_told_as_it_is() -> None:
    vitals = Vitals.of([window(BUSY, LATER)])
    assert (vitals.sessions, vitals.turns, vitals.readers, vitals.reader_lag) == (3, 2, 3, 7)
    assert (vitals.tokens_per_s, vitals.wasted_share) == (29.0, 10 / 300)
    assert vitals.turns_by_ending == {"stop": 5}
    assert (vitals.tools, vitals.oldest_tool_s) == (1, 4.5)
    engine = vitals.engines["gpu"]
    assert (engine.running, engine.waiting, engine.limit) == (2, 5, None)
    assert vitals.spreads["commit"] == Spread(0, None, None, None, 0.01)
    assert vitals.spreads["first_token"] is None
    assert vitals.interrupts is None
    assert vitals.seconds == 10


def test_several_servers_add_up_but_for_what_does_not() -> None:
    both = Vitals.of([window(BUSY, LATER), window("", BUSY, 5.0)])
    assert (both.sessions, both.readers, both.reader_lag) == (6, 6, 7)
    assert both.tokens_per_s == 29.0 + 100 / 5
    commit = both.spreads["commit"]
    assert commit is not None
    assert commit.count == 100
    assert commit.p99 == pytest.approx(0.01)
    assert both.engines["gpu"].waiting == 10


def test_of_nothing_nothing_is_known() -> None:
    vitals = Vitals.of([Window(None, scrape(""))])
    assert vitals.tokens_per_s is None
    assert set(vitals.spreads.values()) == {None}
    assert Vitals.of([Window(None, scrape(BUSY))]).tokens_per_s is None


def test_json_has_no_number_that_json_has_not() -> None:
    late = BUSY.replace('le="+Inf"} 100', 'le="+Inf"} 1000')
    values = Vitals.of([window(BUSY, late)]).as_json()
    assert values["spreads"]["commit"] == {
        "count": 900,
        "p50": None,
        "p95": None,
        "p99": None,
        "most": 0.01,
    }


def test_every_metric_that_is_read_is_one_that_servers_tell() -> None:
    names = {metric.prometheus_name for metric in table.METRICS}
    source = Path(vitals_module.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r'"(backchannel_[a-z_]+|gen_ai_server_[a-z_]+)"', source))
    assert len(read) > 15
    assert read <= names
    assert set(SPREADS.values()) <= names


# --- servers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("gpu", "http://gpu:9464/metrics"),
        ("gpu:1", "http://gpu:1/metrics"),
        ("[::1]:1", "http://[::1]:1/metrics"),
        ("http://gpu/", "http://gpu/metrics"),
        ("https://gpu:1/some/where?a=b", "https://gpu:1/some/where?a=b"),
    ],
)
def test_where_metrics_are(address: str, url: str) -> None:
    assert metrics_url(address) == url


@pytest.mark.parametrize("address", ["", "ftp://gpu", "gpu:none", "http://", "gpu:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        metrics_url(address)


def test_a_window_is_a_minute_long_and_the_rest_forgotten() -> None:
    server = Watched("a", "b")
    for second in range(0, 200, 2):
        server.take(scrape(f"a {second}", second))
        assert server.window is not None
        assert server.window.length_s == min(second, 60)


# --- the screen ------------------------------------------------------------------------------


def painted(rows: list[Row], together: Vitals | None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(dashboard(rows, together, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_nobody_knows_is_a_dash_and_no_zero() -> None:
    vitals = Vitals.of([Window(None, scrape("backchannel_sessions 0"))])
    screen = painted([Row("here", vitals)], vitals)
    (row,) = [line for line in screen.splitlines() if line.startswith("here")]
    assert row.split() == ["here", "0", *"––––––"]
    assert re.search(r"first token +– +– +– +–", screen)


@pytest.mark.parametrize("width", [30, 50, 73, 74, 100, 200])
def test_it_fits(width: int) -> None:
    vitals = Vitals.of([window(BUSY, LATER)])
    rows = [Row("here:1", vitals), Row("there:2", None, "Connection refused")]
    screen = painted(rows, vitals, width)
    assert max(map(len, screen.splitlines())) <= width
    for told in ("here:1", "29.0", "there:2: Connection refused", "5 turns: 5 stop", "gpu"):
        assert told in screen
    assert "all" not in screen.split()


def test_several_are_told_one_by_one_and_together() -> None:
    one = Vitals.of([window(BUSY, LATER)])
    screen = painted([Row("a", one), Row("b", one)], Vitals.of([window(BUSY, LATER)] * 2))
    rows = {line.split()[0]: line.split()[1] for line in screen.splitlines()[:4]}
    assert (rows["a"], rows["b"], rows["all"]) == ("3", "3", "6")


def test_errors_show() -> None:
    more = LATER + 'backchannel_engine_errors_total{error_type="UPSTREAM_STALLED"} 2\n'
    vitals = Vitals.of([window(BUSY, more + "backchannel_commit_errors_total 1\n")])
    screen = painted([Row("a", vitals)], vitals)
    assert "2 UPSTREAM STALLED, 1 the log refused" in screen
    assert "errors" not in painted([Row("a", vitals)], Vitals.of([window(BUSY, LATER)]))


def test_words() -> None:
    assert (time(None), time(INF, 2.5), time(0.0), time(0.25)) == ("–", "> 2.5 s", "0", "250 ms")
    assert headline(0, 1).endswith("rates come with the second look")
    assert headline(59.8, 2) == "backchannel top · 2 servers · the last 60 s"
