"""The page: build it, or say how what is checked in differs from what would be built.

    python scripts/web.py stubs    write gateway/web/client/src/gen from proto/
    python scripts/web.py build    write gateway/backchannel_gateway/static from gateway/web
    python scripts/web.py check    types, unit tests, stubs and page as checked in, its size

Needs Node and the packages of gateway/web/package-lock.json: `scripts/tools.py node web`
installs both. Nothing else here does: the built page is checked in.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import tools  # noqa: E402 - found only once the root is on the path

WEB = ROOT / "gateway" / "web"
MODULES = WEB / "node_modules"
STATIC = ROOT / "gateway" / "backchannel_gateway" / "static"
STUBS = WEB / "client" / "src" / "gen"
PROTO = ROOT / "proto"
# google/rpc/*.proto and google/api/*.proto lie beside their Python modules.
GOOGLEAPIS = Path(sysconfig.get_path("purelib"))
# What the client speaks; the doors for pages and event streams are not called over gRPC.
PROTOS = (
    *("backchannel/v1/" + name for name in ("session.proto", "event.proto", "frame.proto")),
    "backchannel/v1/conversation_service.proto",
    "backchannel/v1/model_service.proto",
    "backchannel/v1/probe_service.proto",
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
NOTICES = ROOT / "THIRD_PARTY_NOTICES"
# Of all that a browser may fetch, gzipped.
MOST_BYTES = 150_000


def node(script: Path, *arguments: str) -> bool:
    """Run a program of the page's packages, and tell whether it was content."""
    found = tools.find_node()
    if found is None or tools.find_web() is None:
        sys.exit("needs Node and the page's packages: python scripts/tools.py node web")
    path = os.pathsep.join([str(found.parent), os.environ.get("PATH", "")])
    command = [str(found), str(script), *arguments]
    environment = os.environ | {"PATH": path, "NO_COLOR": "1", "NODE_ENV": "production"}
    return subprocess.run(command, check=False, cwd=WEB, env=environment).returncode == 0


def vite(into: Path) -> bool:
    """Build the page into a folder."""
    script = MODULES / "vite" / "bin" / "vite.js"
    options = ("--outDir", str(into), "--emptyOutDir", "--logLevel", "warn")
    return node(script, "build", "--mode", "production", *options)


def generate(into: Path) -> None:
    """Write the client's stubs into a folder.

    Raises:
        subprocess.CalledProcessError: protoc found an error, and printed it.
    """
    found = tools.find_node()
    path = os.pathsep.join([str(found.parent) if found else "", os.environ.get("PATH", "")])
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"--proto_path={PROTO}", f"--proto_path={GOOGLEAPIS}"),
            f"--plugin=protoc-gen-es={MODULES / '.bin' / 'protoc-gen-es'}",
            *(f"--es_out={into}", "--es_opt=target=ts,import_extension=js"),
            *PROTOS,
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | {"PATH": path},
    )


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def differences(built: dict[str, bytes], checked_in: dict[str, bytes]) -> list[str]:
    """The names of what is not the same in both."""
    names = sorted(built.keys() | checked_in.keys())
    return [name for name in names if built.get(name) != checked_in.get(name)]


def size(page: dict[str, bytes]) -> int:
    """What a browser fetches, gzipped, in bytes."""
    return sum(len(gzip.compress(data, mtime=0)) for data in page.values())


def unnamed(page: dict[str, bytes]) -> list[str]:
    """The packages in the page that THIRD_PARTY_NOTICES does not name in their version."""
    listed = page.get("assets/licenses.txt", b"").decode()
    packages = re.findall(r"^## (\S+) - (\S+) ", listed, re.MULTILINE)
    if not packages:
        return ["(the build lists no package at all)"]
    notices = NOTICES.read_text(encoding="utf-8")
    return [f"{name} {version}" for name, version in packages if f"{name} {version}" not in notices]


def write_stubs() -> bool:
    """Replace the checked-in stubs by new ones, where there is Node."""
    if tools.find_node() is None or tools.find_web() is None:
        print(f"{STUBS.relative_to(ROOT)}: left as it is (python scripts/tools.py node web)")
        return True
    STUBS.mkdir(parents=True, exist_ok=True)
    generate(STUBS)
    return True


def write_page() -> bool:
    """Replace the checked-in page by a new one."""
    if not vite(STATIC):
        return False
    print(f"{STATIC.relative_to(ROOT)}: {size(files(STATIC)):,} bytes gzipped")
    return True


def check_stubs() -> bool:
    """Compare the checked-in stubs with new ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = differences(files(Path(scratch)), files(STUBS))
    for name in stale:
        print(f"{STUBS.relative_to(ROOT)}/{name} is out of date: python scripts/web.py stubs")
    return not stale


def check_types() -> bool:
    """Check the types, and that the client builds as a package."""
    compiler = MODULES / "typescript" / "bin" / "tsc"
    if not node(compiler, "--project", "tsconfig.json"):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        return node(compiler, "--project", "client/tsconfig.build.json", "--outDir", scratch)


def check_units() -> bool:
    """Run the unit tests of client and page."""
    return node(MODULES / "vitest" / "vitest.mjs", "run", "--reporter=dot", "--maxWorkers=1")


def check_page() -> bool:
    """Compare the checked-in page with a new one; look at its size and its notices."""
    with tempfile.TemporaryDirectory() as scratch:
        if not vite(Path(scratch)):
            return False
        built = files(Path(scratch))
    stale = differences(built, files(STATIC))
    if stale:
        print(f"{STATIC.relative_to(ROOT)} is not what gateway/web builds to: make web")
        print("\n".join(f"  {name}" for name in stale))
    missing = unnamed(built)
    for package in missing:
        print(f"THIRD_PARTY_NOTICES does not name {package}, which is in the page")
    fetched = size(built)
    if fetched > MOST_BYTES:
        print(f"the page is {fetched:,} bytes gzipped, and {MOST_BYTES:,} is the most")
    return not stale and not missing and fetched <= MOST_BYTES


CHECKS = (check_stubs, check_types, check_units, check_page)


def check() -> bool:
    """All checks, also after one has failed."""
    return sum(not run() for run in CHECKS) == 0


COMMANDS = {"stubs": write_stubs, "build": write_page, "check": check}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    sys.exit(not COMMANDS[sys.argv[1]]())
