"""`backchannel tail` as people and programs use it: live, in pipes, across lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse

from backchannel.rpc.server import Server
from backchannel.v1.event_pb2 import Event
from tests.integration.test_chat import backchannel
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess, config, connected
from tests.support.stream import Client, say
from tests.support.terminal import Terminal

PATIENCE_S = 20.0
SECRET = "xylophone"


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BACKCHANNEL_SERVER", str(server.address))
    return str(server.address)


async def session(client: Client, *texts: str, **fields: object) -> str:
    """A session in which that was said and echoed."""
    made = await client.create(**{"model": "scripted/echo", **fields})
    for number, text in enumerate(texts, 1):
        await ask(client, made.session_id, text, number)
    return made.session_id


async def ask(client: Client, session_id: str, text: str, number: int = 1) -> None:
    async with client.attach(session_id) as stream:
        await client.send(session_id, say(text, f"m{number}"))
        await stream.event("turn_finished", number)


class Tail:
    """`backchannel tail` in a pipe, while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdout is not None
        self.out = process.stdout

    async def until(self, words: str) -> str:
        """Read lines until one has these words; all of them."""
        lines = []
        async with asyncio.timeout(PATIENCE_S):
            async for line in self.out:
                lines.append(line.decode())
                if words in lines[-1]:
                    break
            else:
                raise AssertionError(f"ended before {words!r}:\n{''.join(lines)}")
        return "".join(lines)

    async def ended(self) -> tuple[int, str]:
        """The exit code, and what was said beside the events."""
        async with asyncio.timeout(PATIENCE_S):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@contextlib.asynccontextmanager
async def tailing(*arguments: str) -> AsyncIterator[Tail]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", "tail", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Tail(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_lines_in_a_pipe_come_as_things_happen(address: str, client: Client) -> None:
    session_id = await session(client, "one two three", engine_options={"rate": "20"})
    async with tailing(session_id, "--server", address) as tail:
        before = await tail.until("finished")
        rows = [line.split("\t") for line in before.splitlines()]
        assert [row[2] for row in rows] == ["opened", "message", "turn", "says", "finished"]
        assert [row[1] for row in rows] == ["1", "2", "3", "4-6", "7"]
        assert rows[3][3] == '"one two three" · 3 tokens'
        await ask(client, session_id, "four", 2)
        assert '"four"' in await tail.until("finished")
        await client.delete(session_id)
        assert "deleted" in await tail.until("closed")
        assert await tail.ended() == (0, "")


@pytest.mark.usefixtures("address")
async def test_json_is_every_event_as_it_is(client: Client) -> None:
    session_id = await session(client, "one two")
    done = await backchannel("tail", "--json", "--no-follow", session_id)
    assert (done.code, done.err) == (0, "")
    told = [Parse(line, Event()) for line in done.out.splitlines()]
    assert told == await client.events(session_id)


@pytest.mark.usefixtures("address")
async def test_raw_is_a_line_for_each_event(client: Client) -> None:
    session_id = await session(client, "one two")
    done = await backchannel("tail", "--raw", "--no-follow", session_id)
    assert [line.split("\t")[1] for line in done.out.splitlines()] == list("123456")


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize("how", [(), ("--json",), ("--raw",)])
async def test_without_text_nothing_said_is_told(client: Client, how: tuple[str, ...]) -> None:
    session_id = await session(client, SECRET, system=SECRET)
    said = await backchannel("tail", *how, "--no-follow", session_id)
    assert said.out.count(SECRET) >= 3
    done = await backchannel("tail", *how, "--no-follow", "--no-text", session_id)
    assert done.code == 0
    assert SECRET not in done.out + done.err
    assert len(done.out.splitlines()) == len(said.out.splitlines())


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize(
    ("after", "first"), [("0", 1), ("3", 4), ("-2", 5), ("-100", 1), ("6", None)]
)
async def test_where_it_begins(client: Client, after: str, first: int | None) -> None:
    session_id = await session(client, "one two")
    done = await backchannel("tail", "--raw", "--no-follow", "--after", after, session_id)
    assert (done.code, done.err) == (0, "")
    seqs = [int(line.split("\t")[1]) for line in done.out.splitlines()]
    assert seqs == ([] if first is None else list(range(first, 7)))


async def test_what_is_no_longer_kept_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = f"sqlite:///{tmp_path / 'log.db'}"
    sessions = {"retention": {"max_events": 10}, "sweep_s": 0.05}
    async with Server(config(log=log, sessions=sessions)) as server:
        monkeypatch.setenv("BACKCHANNEL_SERVER", str(server.address))
        async with connected(server.address) as client:
            session_id = await session(client, " ".join("a" * 30))
            async with asyncio.timeout(PATIENCE_S):
                while (kept := (await client.get(session_id)).earliest_seq) == 1:  # noqa: ASYNC110 (a sweep tells nobody)
                    await asyncio.sleep(0.02)
        done = await backchannel("tail", "--raw", "--no-follow", "--after", "2", session_id)
    assert done.code == 0
    assert f"events 3 to {kept - 1} are no longer kept" in done.err
    assert done.out.split("\t")[1] == str(kept)


async def test_a_lost_connection_loses_no_event(address: str, client: Client) -> None:
    session_id = await session(client, engine_options={"rate": "100"})
    async with (
        Proxy(address) as proxy,
        tailing("--json", "--server", proxy.address, session_id) as tail,
    ):
        await tail.until("sessionOpened")
        words = " ".join("abcdefghij" * 10)
        asking = asyncio.create_task(ask(client, session_id, words))
        told = await tail.until('"seq": "20"')
        proxy.cut()
        told += await tail.until("turnFinished")
        await asking
        await client.delete(session_id)
        told += await tail.until("sessionClosed")
        code, notes = await tail.ended()
    assert code == 0
    assert "connection lost" in notes
    assert "nothing was lost" in notes
    seqs = [int(json.loads(line)["seq"]) for line in told.splitlines()]
    assert seqs == list(range(2, len(seqs) + 2))


async def test_a_server_that_dies_is_waited_for(
    server_process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKCHANNEL_SERVER", server_process.address)
    async with connected(server_process.address) as client:
        session_id = await session(client, "one")
    async with tailing(session_id) as tail:
        await tail.until("finished")
        server_process.kill()
        await server_process.start()
        async with connected(server_process.address) as client:
            await ask(client, session_id, "two", 2)
        assert '"two"' in await tail.until("finished")


@pytest.mark.usefixtures("address")
async def test_a_reader_that_leaves_the_pipe_ends_it_at_once(client: Client) -> None:
    session_id = await session(client, "one two")
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m backchannel tail {session_id} | head -5",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()  # These were all events that there are.
    assert (out.count(b"\n"), err) == (5, b"")


@pytest.mark.usefixtures("address")
async def test_ctrl_c_ends_it_cleanly(client: Client) -> None:
    session_id = await session(client, "one")
    async with tailing(session_id) as tail:
        await tail.until("finished")
        tail.process.send_signal(signal.SIGINT)
        assert await tail.ended() == (130, "")


@pytest.mark.usefixtures("address")
async def test_at_a_terminal(client: Client) -> None:
    session_id = await session(client, "one two")
    async with Terminal("tail", session_id) as terminal:
        await terminal.expect(r"\d{4}-\d\d-\d\d\s+\d\d:\d\d:\d\d\.\d{3} +1  opened ")
        await terminal.expect(r" +4-5  says +\"one two\" · 2 tokens")
        await terminal.expect(r"finished +stop · 2 tokens: 2 delivered")
        # Deltas show before their turn is over, once no more of them come.
        terminal.type("\x03")
        assert await terminal.ended() == 130
        assert "Traceback" not in terminal.text


@pytest.mark.usefixtures("address")
async def test_deltas_show_while_the_turn_still_runs(client: Client) -> None:
    session_id = await session(client, model="scripted/stall")
    async with tailing(session_id) as tail:
        await tail.until("opened")
        await client.send(session_id, say("go", "m"))
        assert "5 tokens" in await tail.until("says")


@pytest.mark.usefixtures("address")
async def test_what_is_not_there_and_what_makes_no_sense() -> None:
    gone = await backchannel("tail", "no-such-session-at-all")
    assert (gone.code, gone.out) == (1, "")
    assert "backchannel sessions" in gone.err
    both = await backchannel("tail", "--raw", "--json", "x" * 20)
    assert (both.code, both.out) == (2, "")


async def test_a_number_beyond_the_end_is_refused(address: str, client: Client) -> None:
    session_id = await session(client)
    done = await backchannel("tail", "--after", "99", session_id, "--server", address)
    assert (done.code, done.out) == (1, "")
    assert "the newest event is 1" in done.err


async def test_what_was_trimmed_while_the_connection_was_lost_is_said(tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path / 'log.db'}"
    sessions = {"retention": {"max_events": 10}, "sweep_s": 0.05}
    async with (
        Server(config(log=log, sessions=sessions)) as server,
        connected(server.address) as client,
        Proxy(str(server.address)) as proxy,
    ):
        session_id = await session(client)
        async with tailing("--raw", "--server", proxy.address, session_id) as tail:
            await tail.until("opened")
            proxy.freeze()
            await ask(client, session_id, " ".join("a" * 30))
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get(session_id)).earliest_seq < 3:  # noqa: ASYNC110 (a sweep tells nobody)
                    await asyncio.sleep(0.02)
            proxy.cut()
            proxy.thaw()
            assert tail.process.stderr is not None
            async with asyncio.timeout(PATIENCE_S):
                async for line in tail.process.stderr:
                    if b"no longer kept" in line:
                        break
            assert line.startswith(b"events 2 to ")
            await client.send(session_id, say("b", "m2"))
            told = await tail.until("finished")
    assert int(line.split()[3]) + 1 == int(told.split("\t")[1])
