"""A server that speaks vLLM's gRPC, and everything that can go wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from backchannel.engines.protocol import Prompt, StopCause
from backchannel.engines.smg.engine import SmgEngine
from backchannel.engines.smg.factory import create
from backchannel.errors import BackchannelError, Reason
from tests.support.smg_peer import SmgPeer, archive, tokenizer_files
from tests.unit.engines.smg_support import ask, opened, script
from tests.unit.engines.support import Run, collect, user

SECRET = "the vault opens at midnight"


@contextlib.contextmanager
def fails(reason: Reason, *words: str) -> Iterator[None]:
    """The block fails for that reason, in these words and without an address."""
    with pytest.raises(BackchannelError) as caught:
        yield
    assert caught.value.reason is reason
    for word in words:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"fail": 0}, Reason.UPSTREAM_FAILED),
        ({"fail": 3}, Reason.UPSTREAM_FAILED),
        ({"fail": 0, "status": "UNAVAILABLE"}, Reason.UPSTREAM_UNREACHABLE),
        ({"fail": 3, "status": "UNAVAILABLE"}, Reason.UPSTREAM_BROKE_OFF),
        ({"fail": 0, "status": "RESOURCE_EXHAUSTED"}, Reason.UPSTREAM_RATE_LIMITED),
        ({"fail": 0, "status": "PERMISSION_DENIED"}, Reason.UPSTREAM_UNAUTHORIZED),
        ({"fail": 0, "status": "INVALID_ARGUMENT"}, Reason.UPSTREAM_REFUSED),
        ({"fail": 0, "status": "UNIMPLEMENTED"}, Reason.UPSTREAM_NOT_AN_API),
        ({"fail": 0, "status": "DEADLINE_EXCEEDED"}, Reason.UPSTREAM_STALLED),
        ({"fail": 2, "status": "CANCELLED"}, Reason.UPSTREAM_BROKE_OFF),
        ({"cut": 0}, Reason.UPSTREAM_BROKE_OFF),
        ({"cut": 3}, Reason.UPSTREAM_BROKE_OFF),
        ({"abort": 3}, Reason.UPSTREAM_BROKE_OFF),
        ({"error": 3}, Reason.UPSTREAM_FAILED),
    ],
)
async def test_each_failure_has_its_own_reason(how: dict[str, object], reason: Reason) -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        with fails(reason, "engine vllm"):
            await collect(engine.start(ask(script(count=10, **how))))
        assert peer.running == {}
        # One answer has failed; the next is a new one.
        assert (await collect(engine.start(ask(script(say="fine"))))).text == "fine"


async def test_what_a_refusal_says_is_passed_on_unless_it_quotes() -> None:
    peer = SmgPeer()
    refused = Prompt("small", SECRET, [script(say="x", fail=0, status="INVALID_ARGUMENT")])
    async with opened(peer) as engine:
        peer.details = "the grammar is\nbad"
        with fails(Reason.UPSTREAM_REFUSED, "(INVALID_ARGUMENT): the grammar is bad"):
            await collect(engine.start(refused))
        peer.details = f"what is {SECRET.upper()}?"
        with fails(Reason.UPSTREAM_REFUSED, "its own log says why"):
            await collect(engine.start(refused))


@pytest.mark.parametrize(
    ("what", "setting"),
    [({"wait": True}, "first_token_timeout_s"), ({"stall": 4}, "token_timeout_s")],
)
async def test_a_stall_is_noticed_and_aborted(what: dict[str, object], setting: str) -> None:
    peer = SmgPeer()
    async with opened(peer, **{setting: 0.15}) as engine:
        with fails(Reason.UPSTREAM_STALLED, setting):
            await collect(engine.start(ask(script(count=10, **what))))
        assert peer.running == {}
        assert peer.aborted == [peer.asked[0].request_id]


async def test_a_stop_in_a_stall() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=10, stall=4)))
        run = Run()
        async for item in generation:
            run.add(item)
            if run.tokens == 4:
                asyncio.get_running_loop().call_soon(generation.stop)
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.exact
    assert run.end.usage.output_tokens == 4


async def test_a_stop_when_the_server_breaks_off_is_a_stop() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=10, deaf=True, cut=6)))
        run = Run()
        async for item in generation:
            run.add(item)
            if run.tokens == 3:
                generation.stop()
    assert run.end.cause is StopCause.STOPPED
    assert not run.end.usage.exact


async def test_a_server_that_goes_away_in_mid_answer() -> None:
    peer = SmgPeer(step_s=0.005)
    async with contextlib.AsyncExitStack() as exits:
        server = contextlib.AsyncExitStack()
        await server.enter_async_context(peer.serve())
        engine = await exits.enter_async_context(create("vllm", {"target": peer.target}))
        generation = engine.start(ask(script(count=3000, deaf=True)))
        run = Run()
        with fails(Reason.UPSTREAM_BROKE_OFF):
            async for item in generation:
                run.add(item)
                if run.tokens == 5:
                    await server.aclose()
        with fails(Reason.UPSTREAM_UNREACHABLE, "target"):
            await collect(engine.start(ask(script(say="x"))))


# --- at the start


async def test_a_wrong_key_and_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peer = SmgPeer(key="right-key-0123456789")
    with fails(Reason.ENGINE_UNAVAILABLE, "wants a key", "api_key_env or api_key_file"):
        async with opened(peer):
            pass
    monkeypatch.setenv("VLLM_KEY", "wrong-key-0123456789")
    with fails(Reason.ENGINE_UNAVAILABLE, "does not accept its key", "api_key_env"):
        async with opened(peer, api_key_env="VLLM_KEY"):
            pass
    file = tmp_path / "key"
    file.write_text("right-key-0123456789\n")
    async with opened(peer, api_key_file=str(file)) as engine:
        assert (await collect(engine.start(ask(script(say="x"))))).text == "x"


async def test_a_port_that_speaks_something_else() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = create("vllm", {"target": f"127.0.0.1:{port}", "refresh_s": 60})
    async with server:
        with pytest.raises(BackchannelError) as caught:
            async with engine:
                engine.start(ask(script(say="x")))
    # gRPC may take it for a server that is not there; either way it says where to look.
    assert caught.value.reason in (Reason.ENGINE_UNAVAILABLE, Reason.UPSTREAM_UNREACHABLE)
    assert "target" in str(caught.value)


async def test_a_server_that_speaks_another_grpc() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with fails(Reason.ENGINE_UNAVAILABLE, "vllm serve --grpc", f"127.0.0.1:{port}"):
        async with create("vllm", {"target": f"127.0.0.1:{port}"}):
            pass
    await server.stop(None)


async def test_a_server_that_comes_up_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    peer = SmgPeer()
    async with peer.serve():
        pass  # It has a port now, and is away.
    settings = {"target": peer.target, "refresh_s": 0.02, "model": "small"}
    async with create("vllm", settings) as engine:
        assert [card.name for card in engine.models()] == ["small"]
        with fails(Reason.UPSTREAM_UNREACHABLE, "is it running"):
            engine.start(ask(script(say="x")))
        async with peer.serve(peer.port):
            while engine._upstream.problem is not None:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
            assert (await collect(engine.start(ask(script(say="x"))))).text == "x"
    assert caplog.text.count("cannot be reached") == 1
    assert "can be asked again" in caplog.text


async def test_health_and_load_are_watched() -> None:
    peer = SmgPeer()
    async with opened(peer, most_queued=3, refresh_s=0.01) as engine:
        await collect(engine.start(ask(script(say="x"))))
        peer.healthy = False
        await until_refused(engine, Reason.ENGINE_UNAVAILABLE)
        peer.healthy, peer.waiting = True, 3
        await until_refused(engine, Reason.ENGINE_BUSY)
        peer.waiting = 2
        while engine._upstream.problem is not None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        assert (await collect(engine.start(ask(script(say="x"))))).text == "x"


async def until_refused(engine: SmgEngine, reason: Reason) -> None:
    while True:
        try:
            engine.start(ask(script(say="x")))
        except BackchannelError as error:
            if error.reason is reason:
                return
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("same", [True, False])
async def test_a_server_that_comes_back_may_have_another_model(same: bool) -> None:
    peer = SmgPeer()
    async with contextlib.AsyncExitStack() as server:
        await server.enter_async_context(peer.serve())
        async with create("vllm", {"target": peer.target, "refresh_s": 0.02}) as engine:
            assert engine.models()[0].max_context_tokens == 4096
            before = engine._upstream.model
            await server.aclose()
            await until_refused(engine, Reason.UPSTREAM_UNREACHABLE)
            peer.context_tokens = 1000
            if not same:
                peer.bundle = archive(tokenizer_files(peer.tokenizer, "another"))
            async with peer.serve(peer.port):
                while engine._upstream.problem is not None:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.001)
                assert engine.models()[0].max_context_tokens == 1000
                after = engine._upstream.model
    assert before is not None
    assert after is not None
    assert (after.template is before.template) == same
    assert (after.tokenizer is before.tokenizer) == same


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (None, "name a folder with tokenizer.json by tokenizer"),
        (b"no zip", "cannot be read"),
        (archive({"config.json": "{}"}), "no chat template"),
        (archive({"tokenizer_config.json": '{"chat_template": "x"}'}), "no tokenizer.json"),
    ],
)
async def test_a_tokenizer_that_is_none(bundle: bytes | None, words: str) -> None:
    with fails(Reason.ENGINE_UNAVAILABLE, words, "engine vllm"):
        async with opened(SmgPeer(bundle=bundle)):
            pass


async def test_a_tokenizer_that_was_damaged_on_the_way() -> None:
    for sha256 in ("0" * 64, ""):
        with fails(Reason.ENGINE_UNAVAILABLE, "damaged"):
            async with opened(SmgPeer(sha256=sha256)):
                pass


async def test_a_template_that_refuses() -> None:
    peer = SmgPeer()
    template = "{{ raise_exception('Roles must alternate') }}"
    peer.bundle = archive(tokenizer_files(peer.tokenizer, template))
    async with opened(peer) as engine:
        with fails(Reason.UPSTREAM_REFUSED, "does not take this conversation", "must alternate"):
            await collect(engine.start(ask(user(SECRET))))
    peer.bundle = archive(tokenizer_files(peer.tokenizer, "{{ messages[0].content / 2 }}"))
    async with opened(peer) as engine:
        with fails(Reason.UPSTREAM_REFUSED, "TypeError"):
            await collect(engine.start(ask(user(SECRET))))
    assert peer.asked == []


async def test_nothing_of_a_conversation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(SmgPeer()) as engine:
        await collect(engine.start(Prompt("small", SECRET, [script(say=SECRET)])))
        with pytest.raises(BackchannelError):
            await collect(engine.start(Prompt("small", SECRET, [script(count=3, fail=1)])))
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "target is missing"),
        ({"target": "http://127.0.0.1:8000"}, "without http://"),
        ({"target": "127.0.0.1"}, "host:port"),
        ({"target": "h:99999"}, "host:port"),
        ({"target": "h:1", "tool_format": "mistral"}, "'auto', 'hermes' or 'off'"),
        ({"target": "h:1", "dialect": "sglang"}, "dialect"),
        (
            {"target": "h:1", "speed": 1},
            "speed: there is no such setting; there are abort",
        ),
        ({"target": "h:1", "ca_file": "x"}, "tls"),
        ({"target": "h:1", "api_key_env": "A", "api_key_file": "b"}, "exclude each other"),
        ({"target": "h:1", "reasoning": ["<think>", ""]}, "tags"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with fails(Reason.FIELD_INVALID, "settings of the engine vllm", words):
        create("vllm", settings)


def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with fails(Reason.ENGINE_UNAVAILABLE, "NO_KEY"):
        create("vllm", {"target": "h:1", "api_key_env": "NO_KEY"})
    missing = str(tmp_path / "key")
    with fails(Reason.ENGINE_UNAVAILABLE, missing):
        create("vllm", {"target": "h:1", "api_key_file": missing})
    with fails(Reason.ENGINE_UNAVAILABLE, missing):
        create("vllm", {"target": "h:1", "tls": True, "ca_file": missing})


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smg_grpc_proto", None)
    with fails(Reason.ENGINE_UNAVAILABLE, "pip install 'backchannel[smg]'"):
        create("vllm", {"target": "h:1"})
