"""What the README shows is what happens: its commands are run as they stand, on a fresh server."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEFAULT_ADDRESS = "127.0.0.1:50051"


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def pattern(shown: str) -> str:
    """What the output must match; an ellipsis stands for anything, over lines too."""
    return ".*?".join(re.escape(piece) for piece in shown.strip().split("…"))


def steps(block: str) -> list[tuple[str, str]]:
    """A console block as commands and what each is shown to print."""
    found: list[tuple[str, str]] = []
    command: list[str] = []
    shown: list[str] = []
    until = ""
    for line in block.splitlines():
        if line.startswith("$ "):
            if command:
                found.append(("\n".join(command), "\n".join(shown)))
            command, shown = [line[2:]], []
            until = "EOM" if line.endswith("<<'EOM'") else ""
        elif until:
            command.append(line)
            until = "" if line == until else until
        elif command[-1].endswith("\\") or "\n".join(command).count("'") % 2:
            command.append(line)
        else:
            shown.append(line)
    return [*found, ("\n".join(command), "\n".join(shown))]


async def run(command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.needs("grpcurl")
async def test_the_grpcurl_session(server_process: ServerProcess, grpcurl: Path) -> None:
    path = f"{grpcurl.parent}:{os.environ['PATH']}"
    session: dict[str, str] = {}
    ran = 0
    for block in blocks("console"):
        for command, shown in steps(block):
            if not command.startswith(("grpcurl", "ID=")):
                continue
            ran += 1
            here = command.replace(DEFAULT_ADDRESS, server_process.address)
            if command.startswith("ID="):
                session["ID"] = (await run(f"{here}; echo $ID")).strip()
                assert re.fullmatch("[0-9a-f]{32}", session["ID"])
                continue
            printed = await run(here, PATH=path, **session)
            assert re.match(pattern(shown), printed.strip(), re.DOTALL), (command, printed)
    assert ran == 7


@pytest.mark.timeout(120)
async def test_the_python_example(server_command: ServerProcess) -> None:
    server_command.arguments = ("--engine", "llama")
    await server_command.start()
    (example,) = blocks("python")
    program = example.replace(DEFAULT_ADDRESS, server_command.address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    first, *_, last = out.decode().splitlines()
    assert "84" in first
    assert re.fullmatch(r"resume with [A-Za-z0-9_-]{16,} after \d+", last)


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
