"""`backchannel serve`, as people run it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from backchannel.engines.llama.config import HOUSE_FILE
from backchannel.v1 import session_pb2
from tests.support.server import START_S, ServerProcess, connected
from tests.support.stream import Refused, check_log, create, resume, say

SESSION = "kept-across-processes"


def backchannel(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backchannel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from backchannel.cli.main import app\n"
        "try: app(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'google.protobuf', 'xllamacpp', 'pydantic_settings', 'structlog'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S, check=True
    )
    assert "backchannel serve --engine scripted --log memory" in " ".join(done.stdout.split())
    assert "LOADED []" in done.stdout


async def test_start_up_says_what_runs_and_what_to_do_next(server_process: ServerProcess) -> None:
    said = (server_process.folder / "stdout").read_text()
    assert f"listens on 127.0.0.1:{server_process.port}" in said
    assert "scripted/echo" in said
    assert str(server_process.folder / "log.db") in said
    assert f"grpcurl -plaintext 127.0.0.1:{server_process.port} list" in said
    assert "backchannel chat" in said


async def test_sigterm_drains_and_leaves_with_0(server_command: ServerProcess) -> None:
    server_command.arguments = ("--drain-grace", "3")
    await server_command.start()
    async with (
        connected(server_command.address) as client,
        client.converse(create(session_id=SESSION, model="scripted/stall"), say("go")) as stream,
    ):
        await stream.event("output_delta", 5)
        start = time.monotonic()
        stopping = asyncio.create_task(server_command.stop())
        await stream.until(lambda s: any(f.HasField("go_away") for f in s.frames))
        # What comes now is sent elsewhere.
        with Refused() as refused:
            await client.create(model="scripted/echo")
        assert refused.ending is not None
        assert refused.ending.code is grpc.StatusCode.UNAVAILABLE
        await stream.close()
        assert await stopping == 0
        assert time.monotonic() - start < 4.5


async def test_a_stop_leaves_the_turn_to_the_next_process(server_command: ServerProcess) -> None:
    server_command.arguments = ("--drain-grace", "1")
    await server_command.start()
    opening = create(session_id=SESSION, model="scripted/stall")
    async with (
        connected(server_command.address) as client,
        client.converse(opening, say("go")) as stream,
    ):
        await stream.event("output_delta", 5)
        start = time.monotonic()
        stopping = asyncio.create_task(server_command.stop())
        end = await stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        cursor = stream.events[-1].seq
        assert await stopping == 0
        assert time.monotonic() - start < 2.5
    await server_command.start()
    async with (
        connected(server_command.address) as client,
        client.converse(resume(SESSION, cursor)) as stream,
    ):
        finished = await stream.event("turn_finished")
        assert stream.events[0].seq == cursor + 1
        reason = finished.turn_finished.finish_reason
        assert reason == session_pb2.FINISH_REASON_OWNER_LOST
        check_log(await client.events(SESSION))


async def test_kill_and_start_again(server_process: ServerProcess) -> None:
    async with connected(server_process.address) as client:
        opening = create(session_id=SESSION, model="scripted/count", engine_options={"rate": "100"})
        async with client.converse(opening, say("go", "m")) as stream:
            await stream.event("output_delta", 10)
            server_process.kill()
            end = await stream.end()
            assert end.code is grpc.StatusCode.UNAVAILABLE
            seen = stream.events
    await server_process.start()
    async with (
        connected(server_process.address) as client,
        client.converse(resume(SESSION, seen[-1].seq)) as stream,
    ):
        await stream.event("turn_finished")
        await stream.send(say("go", "m"))
        await stream.receipt("m")
        check_log(seen + stream.events)


async def test_a_second_signal_stops_at_once(server_command: ServerProcess) -> None:
    server_command.arguments = ("--drain-grace", "60")
    await server_command.start()
    async with (
        connected(server_command.address) as client,
        client.converse(create(model="scripted/stall"), say("go")) as stream,
    ):
        await stream.event("output_delta")
        assert server_command.process is not None
        start = time.monotonic()
        server_command.process.terminate()
        # Twice at once is one wish, as some wrappers express it.
        server_command.process.terminate()
        await stream.until(lambda s: any(f.HasField("go_away") for f in s.frames))
        assert server_command.process.poll() is None
        await asyncio.sleep(0.4)
        assert await server_command.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - start < 5


async def test_the_log_is_json_and_holds_nobodys_words(server_process: ServerProcess) -> None:
    secret = "the person's words"
    async with (
        connected(server_process.address) as client,
        client.converse(create(model="scripted/echo", system=secret), say(secret)) as stream,
    ):
        await stream.event("turn_finished")
        assert stream.text == secret
    assert await server_process.stop() == 0
    assert secret not in server_process.output
    lines = (server_process.folder / "stderr").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert events[0] == "serving"
    assert events[-1] == "drained"


async def test_a_port_that_is_taken(server_process: ServerProcess) -> None:
    done = await asyncio.to_thread(
        backchannel, "serve", "--listen", server_process.address, "--log", "memory"
    )
    assert done.returncode == 2
    assert f"cannot listen on {server_process.address}: Address already in use" in done.stderr
    assert "--listen" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_a_log_that_is_taken(server_process: ServerProcess) -> None:
    log = f"sqlite:///{server_process.folder / 'log.db'}"
    done = await asyncio.to_thread(
        backchannel, "serve", "--listen", "127.0.0.1:0", "--engine", "scripted", "--log", log
    )
    assert done.returncode == 1
    assert "log.db" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--listen", "0.0.0.0:0"), 2, "--anonymous"),
        (("--listen", "nonsense"), 2, "host:port"),
        (("--drain-grace", "-1"), 2, "--drain-grace"),
        (("--config", "/nothing/there.toml"), 2, "/nothing/there.toml"),
        (("--log-level", "chatty"), 2, "debug"),
        (("--engine", "nothing"), 1, "scripted"),
        (("--engine", "scripted", "--model", "scripted/nothing"), 1, "scripted/echo"),
        (("--log", "nothing://there"), 1, "sqlite"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], code: int, says: str) -> None:
    basic = ("serve", "--listen", "127.0.0.1:0", "--log", "memory")
    done = backchannel(*basic, *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "backchannel.toml"
    path.write_text('model = "scripted/count"\n[sessions]\nheartbeat_s = 0.2\n')
    return path


async def test_settings_from_the_file_and_the_environment(
    server_command: ServerProcess, settings_file: Path
) -> None:
    server_command.environment = {"BACKCHANNEL_CONFIG": str(settings_file)}
    await server_command.start()
    async with connected(server_command.address) as client:
        session = await client.create()
        assert session.config.model == "scripted/count"
        async with client.attach(session.session_id) as stream:
            await stream.until(lambda s: sum(f.HasField("heartbeat") for f in s.frames) >= 2)


@pytest.fixture
def no_xllamacpp(tmp_path: Path) -> str:
    """A folder that, first in the path, makes a machine one without a wheel of xllamacpp."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "xllamacpp.py").write_text('raise ImportError("no wheel for this machine")\n')
    return str(folder)


async def test_without_the_embedded_engine_it_says_so_and_serves(
    server_command: ServerProcess, no_xllamacpp: str
) -> None:
    server_command.engines = ()
    server_command.environment = {"PYTHONPATH": no_xllamacpp}
    await server_command.start()
    assert "Note: llama is not there: " in server_command.output
    assert "xllamacpp" in server_command.output
    async with connected(server_command.address) as client:
        assert (await client.create()).config.model == "scripted/echo"


@pytest.mark.parametrize(
    "asked_for", [{"BACKCHANNEL_ENGINE": "llama"}, {"BACKCHANNEL_MODEL": "llama/house"}]
)
def test_an_engine_that_was_asked_for_and_cannot_start_stops_the_start(
    no_xllamacpp: str, monkeypatch: pytest.MonkeyPatch, asked_for: dict[str, str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", no_xllamacpp)
    for name, value in asked_for.items():
        monkeypatch.setenv(name, value)
    done = backchannel("serve", "--listen", "127.0.0.1:0", "--log", "memory")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "llama" in done.stderr
    assert "xllamacpp, which is not installed here" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_gguf_file_is_the_default_model(
    server_command: ServerProcess, own_model: Path
) -> None:
    server_command.arguments = ("--model", str(own_model))
    await server_command.start()
    async with (
        connected(server_command.address) as client,
        client.converse(create(), say("Hello!")) as stream,
    ):
        opened = await stream.event("session_opened")
        assert opened.session_opened.session.config.model == "llama/my-own.v1"
        await stream.event("turn_finished")
        assert stream.text


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A GGUF file with a name that people give."""
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    return Path(shutil.copy(HOUSE_FILE, tmp_path / "my own.v1.gguf"))
