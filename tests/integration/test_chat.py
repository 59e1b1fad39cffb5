"""The commands as people use them: at a terminal, in a pipe, with a server that dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from backchannel.client import Client, FinishReason, Snapshot
from backchannel.rpc.server import Server
from tests.support.server import ServerProcess
from tests.support.terminal import PATIENCE_S, Terminal

SLOW = ("--model", "scripted/count", "--option", "rate=20")


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BACKCHANNEL_SERVER", str(server.address))
    return str(server.address)


@pytest.fixture
async def sdk(address: str) -> AsyncIterator[Client]:
    async with Client(address) as client:
        yield client


@dataclass
class Done:
    code: int
    out: str
    err: str


async def backchannel(*arguments: str | bytes, said: str | bytes = "") -> Done:
    """Run the command with pipes on all sides."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        out, err = await process.communicate(said.encode() if isinstance(said, str) else said)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def only_session(client: Client) -> Snapshot:
    (session,) = [session async for session in client.sessions()]
    return await client.snapshot(session.session_id)


async def over(client: Client, turns: int) -> bool:
    """Whether so many turns have ended, and no other has begun."""
    ended = [bool(turn.finish_reason) for turn in (await only_session(client)).turns]
    return ended == [True] * turns


# --- in a pipe --------------------------------------------------------------------------------


@pytest.mark.usefixtures("address")
async def test_what_is_piped_in_is_answered_on_standard_output_alone() -> None:
    done = await backchannel("chat", "--model", "scripted/echo", said="hello *big*\nworld\n")
    assert (done.code, done.out) == (0, "hello *big*\nworld\n")
    assert re.fullmatch(r"session [\w-]{32}\n", done.err)


@pytest.mark.usefixtures("address")
async def test_a_message_can_be_an_argument_and_a_session_gone_on_with() -> None:
    done = await backchannel("chat", "-m", "scripted/count", "go")
    assert done.out.split() == [str(number) for number in range(1, 101)]
    session = done.err.split()[-1]
    again = await backchannel("chat", "--session", session, "go")
    assert (again.code, again.out) == (0, done.out)


@pytest.mark.parametrize(
    ("arguments", "piped"),
    [
        ((), b"\xff\xfe"),
        ((b"caf\xe9",), b""),
        ((b"--system", b"caf\xe9", b"x"), b""),
        ((b"--session", b"caf\xe9", b"x"), b""),
        ((b"--option", b"rate=\xe9", b"x"), b""),
    ],
)
async def test_what_is_no_text_is_refused_before_anything_is_done(
    sdk: Client, arguments: tuple[bytes, ...], piped: bytes
) -> None:
    done = await backchannel("chat", *arguments, said=piped)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert "is not UTF-8" in done.err
    assert not [session async for session in sdk.sessions()]


async def test_a_message_that_is_refused_leaves_no_session(sdk: Client) -> None:
    done = await backchannel("chat", "-m", "scripted/echo", said="x" * 1_100_000)
    assert (done.code, done.out) == (1, "")
    assert "at most 1 MiB" in done.err
    assert not [session async for session in sdk.sessions()]


@pytest.fixture
def full() -> Iterator[BinaryIO]:
    """A place where nothing can be written to."""
    with Path("/dev/full").open("wb") as file:
        yield file


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize("command", [("chat", "-m", "scripted/count", "x"), ("models",)])
async def test_output_that_cannot_be_written_is_said_in_a_line(
    command: tuple[str, ...], full: BinaryIO
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", *command), stdout=full, stderr=subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    assert "Cannot write: No space left on device" in err.decode()
    assert "Traceback" not in err.decode()


@pytest.mark.usefixtures("address")
async def test_input_that_the_locale_cannot_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = await backchannel("chat", "-m", "scripted/echo", said="é\n")
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("address")
async def test_an_answer_that_fails_is_no_success() -> None:
    done = await backchannel("chat", "-m", "scripted/fail", "go")
    assert (done.code, done.out) == (1, "1 2 3 4 5\n")
    assert "failed" in done.err


async def test_an_answer_that_is_cut_is_no_success(server_process: ServerProcess) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", "chat", *SLOW, "go"),
        env={**os.environ, "BACKCHANNEL_SERVER": server_process.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(40):
        assert (await process.stdout.readexactly(3)).decode() == "1 2"
        server_process.kill()
        await server_process.start()
        out, err = await process.communicate()
    assert process.returncode == 1
    assert not out.decode().endswith("100\n")
    assert "connection lost" in err.decode()
    assert "resumed at event" in err.decode()


@pytest.mark.usefixtures("address")
async def test_a_tool_call_is_shown_and_answered() -> None:
    done = await backchannel("chat", "-m", "scripted/tool", "6 * 7")
    assert done.code == 0
    assert 'calculator {"input": "6 * 7"}' in done.err
    assert "calculator failed: expression: Field required" in done.err
    assert "Field required" in done.out
    without = await backchannel("chat", "-m", "scripted/tool", "--no-tools", "6 * 7")
    assert "calculator" not in without.err


async def test_the_house_model_is_helped_with_sums_and_the_time(
    server_command: ServerProcess,
) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    server_command.arguments = ("--engine", "llama")
    await server_command.start()
    address = ("--server", server_command.address, "--model", "llama/house")
    done = await backchannel("chat", *address, said="What is 12 * 7?\n")
    assert done.code == 0
    assert re.search(r'calculator \{"expression": *"12 ?\* ?7"\}\n  → \{"result":84\}', done.err)
    assert "84" in done.out
    async with Terminal("chat", *address) as terminal:
        await terminal.expect("> ")
        terminal.type("What time is it?\r")
        await terminal.expect(r"clock \{\}")
        await terminal.expect(r'→ \{"time":"20')
        await terminal.expect("It is ")
        terminal.type("\x04")
        assert await terminal.ended() == 0


async def test_without_a_server_the_remedy_is_told() -> None:
    done = await backchannel("chat", "--server", "127.0.0.1:1", "hello")
    assert done.code == 1
    assert done.out == ""
    assert "No Backchannel server answers at 127.0.0.1:1." in done.err
    assert "backchannel serve" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("--model", "scripted/nobody", "hi"), "there is no model 'scripted/nobody'", 1),
        (("--session", "nobody-knows-this-one", "hi"), "no such session", 1),
        (("--session", "x", "--model", "scripted/echo", "hi"), "keeps the model", 2),
        (("--option", "rate", "hi"), "not NAME=VALUE", 2),
        ((), "nothing was piped in", 2),
    ],
)
async def test_what_is_wrong_is_said(arguments: tuple[str, ...], said: str, code: int) -> None:
    done = await backchannel("chat", *arguments)
    assert done.code == code
    assert said in " ".join(done.err.replace("│", "").split())
    assert "Traceback" not in done.err


# --- at a terminal ----------------------------------------------------------------------------


@pytest.mark.usefixtures("address")
async def test_a_chat_shows_answers_and_figures_and_how_to_go_on() -> None:
    async with Terminal("chat", "--model", "scripted/echo") as terminal:
        await terminal.expect("scripted/echo at 127.0.0.1")
        await terminal.expect("> ")
        terminal.type("a **bold** word\r")
        await terminal.expect("a bold word")
        await terminal.expect(
            r"queued [\d.]+ m?s · first token [\d.]+ m?s · [\d,.]+ tok/s"
            r" · longest gap [\d.]+ m?s · 3 tokens: 3 shown, 0 wasted"
        )
        await terminal.expect("> ")
        terminal.type("\x04")
        again = await terminal.expect(r"backchannel (chat --server \S+ --session \S+)")
        assert await terminal.ended() == 0
    async with Terminal(*again.group(1).split()) as terminal:
        await terminal.expect(r"> a \*\*bold\*\* word")
        await terminal.expect("a bold word")
        await terminal.expect("> ")
        terminal.type("and more\r")
        await terminal.expect("and more[^$]+and more")
        terminal.type("\x04")
        assert await terminal.ended() == 0


async def test_ctrl_c_stops_and_keeps_what_was_shown_and_the_second_leaves(sdk: Client) -> None:
    async with Terminal("chat", *SLOW) as terminal:
        await terminal.expect("> ")
        terminal.type("count\r")
        await terminal.expect("1 2 3 4 5 6 7 8")
        terminal.type("\x03")
        await terminal.expect("what you see above is what stays in the conversation")
        await terminal.expect(r"stopped · queued")
        shown = re.findall(r"1 2 [\d ]+", terminal.text)[-1].strip()
        await terminal.expect("> ")
        terminal.type("\x03")
        await terminal.expect("Go on with")
        assert await terminal.ended() == 0
    (turn,) = (await only_session(sdk)).turns
    assert turn.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
    assert turn.text[: turn.kept_chars].strip() == shown


async def test_a_line_typed_while_it_speaks_is_answered_after_it(sdk: Client) -> None:
    async with Terminal("chat", "-m", "scripted/count", "-o", "rate=40") as terminal:
        await terminal.expect("> ")
        terminal.type("count\r")
        await terminal.expect("1 2 3 4 5")
        terminal.type("n")
        await terminal.expect(">> n")
        terminal.type("ext\r")
        await terminal.expect("98 99 100")
        await terminal.expect("> next")
        await terminal.expect("98 99 100")
        await terminal.expect("> ")
        terminal.type("\x04")
        assert await terminal.ended() == 0
    snapshot = await only_session(sdk)
    assert [turn.input.parts[0].text for turn in snapshot.turns] == ["count", "next"]
    assert {turn.finish_reason for turn in snapshot.turns} == {FinishReason.FINISH_REASON_STOP}


async def test_steering_lets_the_sentence_end(sdk: Client) -> None:
    async with Terminal("chat", "-m", "scripted/echo", "-o", "rate=8") as terminal:
        await terminal.expect("> ")
        terminal.type("one two. " * 60 + "\r")
        await terminal.expect("one two. one two.")
        terminal.type("/steer shorter, please\r")
        await terminal.expect("went on differently")
        async with asyncio.timeout(PATIENCE_S):
            while not await over(sdk, 2):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.05)
        await terminal.expect("> ")
        terminal.type("\x04")
        assert await terminal.ended() == 0
    first, second = (await only_session(sdk)).turns
    assert first.finish_reason == FinishReason.FINISH_REASON_STEERED
    assert first.text.endswith("two.")
    assert second.text == "shorter, please"


async def test_redirecting_keeps_what_was_on_the_screen(sdk: Client) -> None:
    async with Terminal("chat", *SLOW) as terminal:
        await terminal.expect("> ")
        terminal.type("count\r")
        await terminal.expect("1 2 3 4 5")
        terminal.type("/")
        await terminal.expect(">> /")
        shown = re.findall(r"1 2 [\d ]+", terminal.text)[-1].strip()
        await asyncio.sleep(0.5)
        terminal.type("now again\r")
        await terminal.expect("what you see above is what stays in the conversation")
        # What came while the line was typed is not shown: it does not stay.
        assert f" {int(shown.split()[-1]) + 2}" not in terminal.text
        await terminal.expect("> again")
        terminal.type("\x03")
        await terminal.expect("stopped")
        terminal.type("\x04")
        assert await terminal.ended() == 0
    first = (await only_session(sdk)).turns[0]
    assert first.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
    assert first.text[: first.kept_chars].strip() == shown


async def test_ctrl_c_at_the_aside_stops_the_answer(sdk: Client) -> None:
    async with Terminal("chat", *SLOW) as terminal:
        await terminal.expect("> ")
        terminal.type("count\r")
        await terminal.expect("1 2 3 4 5")
        terminal.type("x\x7f")
        await terminal.expect(">> ")
        terminal.type("\x03")
        await terminal.expect("what you see above is what stays in the conversation")
        await terminal.expect("> ")
        terminal.type("\x04")
        assert await terminal.ended() == 0
    (turn,) = (await only_session(sdk)).turns
    assert turn.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED


async def test_the_last_message_is_edited_and_said_again_in_a_new_session(sdk: Client) -> None:
    async with Terminal("chat", "-m", "scripted/echo") as terminal:
        await terminal.expect("> ")
        terminal.type("/retry\r")
        await terminal.expect("Nothing was said here yet")
        await terminal.expect("> ")
        terminal.type("first\r")
        await terminal.expect("tokens: 1 shown")
        await terminal.expect("> ")
        terminal.type("second\r")
        await terminal.expect("tokens: 1 shown")
        await terminal.expect("> ")
        terminal.type("/edit\r")
        await terminal.expect("> second")
        terminal.type(" thought\r")
        old = await terminal.expect(r"The old one is kept:\s+backchannel chat .*--session (\S+)")
        await terminal.expect("tokens: 2 shown")
        await terminal.expect("> ")
        terminal.type("\x04")
        new = await terminal.expect(r"Go on with:\s+backchannel chat .*--session (\S+)")
        assert await terminal.ended() == 0
    assert [turn.text for turn in (await sdk.snapshot(old.group(1))).turns] == ["first", "second"]
    snapshot = await sdk.snapshot(new.group(1))
    assert [turn.text for turn in snapshot.turns] == ["second thought"]
    assert [m.parts[0].text for m in snapshot.session.config.history] == ["first", "first"]


async def test_a_second_ctrl_c_leaves_an_answer_that_does_not_stop(
    server_process: ServerProcess,
) -> None:
    address = ("--server", server_process.address)
    async with Terminal("chat", *address, "--model", "scripted/stall") as terminal:
        await terminal.expect("> ")
        terminal.type("go\r")
        await terminal.expect("1 2 3 4 5")
        server_process.kill()
        await terminal.expect("connection lost")
        terminal.type("\x03")
        await terminal.expect("Ctrl-C leaves")
        terminal.type("\x03")
        await terminal.expect("Go on with")
        assert await terminal.ended() == 0


@pytest.mark.usefixtures("address")
async def test_at_the_prompt_ctrl_c_clears_then_asks_then_leaves(sdk: Client) -> None:
    async with Terminal("chat", "--model", "scripted/echo") as terminal:
        await terminal.expect("> ")
        terminal.type("never mind")
        await terminal.expect("never mind")
        terminal.type("\x03")
        await terminal.expect("Once more, or Ctrl-D, to leave")
        await terminal.expect("> ")
        terminal.type("\x03")
        assert await terminal.ended() == 0
    # Nothing was said, so nothing is kept.
    assert [session async for session in sdk.sessions()] == []


async def test_a_server_that_dies_in_mid_answer_is_told_honestly(
    server_process: ServerProcess,
) -> None:
    address = ("--server", server_process.address)
    async with Terminal("chat", *address, *SLOW) as terminal:
        await terminal.expect("> ")
        terminal.type("count\r")
        await terminal.expect("1 2 3 4 5")
        server_process.kill()
        await terminal.expect("connection lost")
        await terminal.expect("resuming")
        await server_process.start()
        await terminal.expect(r"resumed at event \d+")
        await terminal.expect("cut off: the server process that ran it died")
        await terminal.expect("> ")
        terminal.type("again\r")
        await terminal.expect("1 2 3")


async def test_an_answer_under_way_is_gone_on_with(sdk: Client) -> None:
    async with sdk.converse(model="scripted/count", engine_options={"rate": "20"}) as conversation:
        await conversation.send("count to a hundred")
        async for event in conversation.events():
            if event.output_delta.text == " 20":
                break
    async with Terminal("chat", "--session", conversation.session_id) as terminal:
        await terminal.expect("> count to a hundred")
        await terminal.expect(r"1 2 3 4 5 .* 20 21")
        await terminal.expect(r"98 99\s+100")
        await terminal.expect("100 tokens: 100 shown, 0 wasted")


async def test_a_session_that_somebody_else_deletes_is_over(sdk: Client) -> None:
    session_id = "deleted-by-somebody-else"
    async with sdk.converse(model="scripted/echo", session_id=session_id) as conversation:
        await conversation.say("hello")
    async with Terminal("chat", "--session", session_id) as terminal:
        await terminal.expect("hello[^$]+> ")
        await sdk.delete(session_id)
        terminal.type("more\r")
        await terminal.expect("the session is over: it was deleted, or has expired")
        assert await terminal.ended() == 1


@pytest.mark.usefixtures("address")
async def test_what_a_model_says_cannot_drive_the_terminal() -> None:
    async with Terminal("chat", "--model", "scripted/echo", "a\x1b]0;title\x07b \x1b[2Jc") as one:
        await one.expect(r"a\]0;titleb \[2Jc")
        assert await one.ended() == 0
        assert b"\x1b]0;" not in one._raw


@pytest.mark.usefixtures("address")
async def test_what_was_typed_is_remembered_and_private(tmp_path: Path) -> None:
    for _ in range(2):
        async with Terminal("chat", "--model", "scripted/echo") as terminal:
            await terminal.expect("> ")
            terminal.type("first words\r" if not _ else "\x1b[A\r")
            await terminal.expect("first words[^$]+first words")
            await terminal.expect("shown")
            terminal.type("\x04")
            assert await terminal.ended() == 0
    history = tmp_path / "state" / "backchannel" / "chat_history"
    assert history.read_text().count("first words") == 1
    assert history.stat().st_mode & 0o077 == 0


# --- models and sessions ----------------------------------------------------------------------


@pytest.mark.usefixtures("address")
async def test_models_for_programs_and_for_people() -> None:
    found = json.loads((await backchannel("models", "--json")).out)
    assert found[0]["name"] == "scripted/echo"
    plain = (await backchannel("models")).out.splitlines()
    assert plain[0].startswith("scripted/echo (default)\tno limit\t")
    async with Terminal("models") as terminal:
        await terminal.expect("model +context +can +about")
        await terminal.expect("scripted/stall")
        assert await terminal.ended() == 0


@pytest.mark.usefixtures("address")
async def test_sessions_are_listed_shown_and_deleted() -> None:
    said = await backchannel("chat", "-m", "scripted/echo", "--system", "be brief", "good morning")
    session = said.err.split()[-1]
    listed = await backchannel("sessions")
    assert listed.out.startswith(f"{session}\tscripted/echo\tidle\t2\t")
    assert (await backchannel("sessions", "list")).out == listed.out
    assert [
        one["sessionId"] for one in json.loads((await backchannel("sessions", "--json")).out)
    ] == [session]
    assert (await backchannel("sessions", "--label", "team=x")).out == ""
    assert (await backchannel("sessions", "list", "--label", 'a="', "--label", "b=")).code == 0
    assert "KEY=VALUE" in (await backchannel("sessions", "--label", "team")).err
    assert "filter" in (await backchannel("sessions", "--label", "Team=x")).err
    shown = (await backchannel("sessions", "show", session)).out
    assert "be brief" in shown
    assert "> good morning\ngood morning\n" in shown
    raw = json.loads((await backchannel("sessions", "show", session, "--json")).out)
    assert raw["turns"][0]["text"] == "good morning"
    gone = await backchannel("sessions", "delete", session)
    assert (gone.code, gone.out) == (0, f"Deleted {session}.\n")
    again = await backchannel("sessions", "delete", session)
    assert again.code == 1
    assert "`backchannel sessions` lists" in again.err
    assert (await backchannel("sessions")).out == ""


@pytest.mark.usefixtures("address")
async def test_a_person_is_asked_before_a_session_is_deleted(sdk: Client) -> None:
    session = (await sdk.create()).session_id
    for answer, code, left in (("n", 1, 1), ("y", 0, 0)):
        async with Terminal("sessions", "delete", session) as terminal:
            await terminal.expect(re.escape(f"Delete session {session}?"))
            terminal.type(f"{answer}\r")
            assert await terminal.ended() == code
        assert len([one async for one in sdk.sessions()]) == left


@pytest.mark.parametrize("command", ["chat", "models", "sessions"])
async def test_help_teaches_with_examples(command: str) -> None:
    done = await backchannel(command, "--help")
    assert done.code == 0
    assert "Examples" in done.out
    assert f"backchannel {command}" in done.out


def test_help_is_not_held_up_by_what_only_the_commands_need() -> None:
    heavy = "{'grpc', 'google.protobuf', 'pydantic', 'prompt_toolkit', 'asyncio'}"
    code = f"import backchannel.cli.main, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
