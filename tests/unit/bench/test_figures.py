"""How the bench counts, and how it keeps and draws what it has counted."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots, profiling
from bench.driver import Times
from bench.page import Outcome, Part, Section, Store
from bench.profiling import owner


def test_percentiles_are_of_all_that_was_seen() -> None:
    times = Times.together([Times([(1000, 98)]), Times([(7000, 1), (9000, 1)])])
    assert len(times) == 100
    assert [times.at_ms(percent) for percent in (0, 50, 98, 99, 99.5, 100)] == [
        *(1.0, 1.0, 1.0),
        *(7.0, 9.0, 9.0),
    ]
    assert math.isnan(Times().at_ms(50))


MAIN = "run_forever (asyncio/base_events.py:607);Handle._run (asyncio/events.py:80)"
STACKS = {
    f"{MAIN};converse (backchannel/rpc/conversation.py:1);0x1 (grpc/_cython/cygrpc.so)": "gRPC",
    f"{MAIN};0x1 (grpc/_cython/cygrpc.so);sendmsg (libc.so.6)": "the kernel's send",
    f"{MAIN};run_text (backchannel/host/live.py:1);text (backchannel/session/turns.py:2);"
    "upb_Message_Set (_message.abi3.so)": "the core's decision",
    f"{MAIN};run_text (backchannel/host/live.py:1)": "the host",
    f"{MAIN};_call_soon (asyncio/base_events.py:781)": "the event loop",
    f"{MAIN};f (backchannel/host/live.py:1);gc_collect_main (libpython3.so)": "garbage collection",
    "Worker._run (backchannel/log/worker.py:92);sqlite3_step (l.so);pwrite64 (libc.so)": "the log",
    # Waits are nobody's work, whatever is below them; nor is the start.
    "Worker._run (backchannel/log/worker.py:91);PyThread_acquire_lock_timed (libpython.so);"
    "0x1 (libc.so.6);0x2 (libc.so.6)": None,
    "Worker._run (backchannel/log/worker.py:92);sqlite3_step (l.so);fdatasync (libc.so.6)": None,
    f"{MAIN};select (selectors.py:468);epoll_wait (libc.so.6)": None,
    f"{MAIN};_load (<frozen importlib._bootstrap>:1);f (backchannel/host/live.py:1)": None,
    "main (backchannel/__main__.py:8);f (backchannel/host/config.py:1)": None,
}


@pytest.mark.parametrize(("stack", "whose"), STACKS.items())
def test_a_sample_belongs_to_whose_work_it_is(stack: str, whose: str | None) -> None:
    assert owner(stack) == whose


def test_samples_are_counted_by_owner() -> None:
    raw = "\n".join(f"{stack} {count}" for count, stack in enumerate(STACKS, 1))
    samples = profiling.read(raw)
    assert samples["the log"] == 7
    assert samples.total() == sum(range(1, 8))
    # Whatever can be found is explained.
    assert samples.keys() <= profiling.OWNERS.keys()


def _part(name: str, cell: str) -> Part:
    section = Section("Stops", "stops", ("of", "ms"), [["some", cell]], "quietly", ("cost",))
    outcome = Outcome([section], [f"**It took {cell}.**"], {"ms": [1.5]})
    return Part.of(name, "python -m bench", 0.5, outcome)


def test_a_part_is_measured_anew_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    store = Store()
    store.put(_part("stops", "3.1"))
    store.put(_part("load", "4.1"))
    store.write(page, {"cost": "<svg/>"})
    assert (tmp_path / "performance" / "cost.svg").read_text() == "<svg/>"

    again = Store.read(page)
    again.put(_part("load", "5.9"))
    again.write(page, {})
    text = page.read_text()
    assert "| some | 3.1 |" in text
    assert "| some | 5.9 |" in text
    assert "4.1" not in text
    # In the page's own order, and each picture where the page looks for it.
    assert text.index("5.9.**") < text.index("3.1.**")
    assert "(performance/cost.svg)" in text
    assert Store.read(page).markdown("performance") == text


def test_pictures_are_well_formed_and_show_every_row() -> None:
    bars = plots.bars("Cost", "µs", [("a < b", 10.0, 9.0, 12.0), ("c", 0.5, 0.5, 0.5)])
    lines = {"bare": [(0, 1.0), (50, 2.0), (99, 8.0)], "ours & all": [(0, 0.1), (99, 30.0)]}
    curves = plots.curves("Latency", lines, ["bare"])
    for svg, words in ((bars, ("a < b", "c", "10 µs")), (curves, ("bare", "ours & all", "99%"))):
        drawn = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
        assert set(words) <= set(drawn)
        # On white and on black.
        assert "prefers-color-scheme: dark" in svg
