"""The contract's generated files: make them, or say how they differ from what is checked in.

    python scripts/proto.py stubs      write service/backchannel/v1 from proto/
    python scripts/proto.py baseline   accept the contract as it is as the one not to break
    python scripts/proto.py check      buf lint, buf breaking, stubs and baseline as checked in

Nothing is taken from a schema registry: google/api and google/rpc come with the
googleapis-common-protos wheel, and buf is given an image that protoc made.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = Path("backchannel/v1")
STUBS = ROOT / "service" / PACKAGE
BASELINE = PROTO / "baseline.binpb"
CHANGELOG = ROOT / "CHANGELOG.md"
BIN = Path(sysconfig.get_path("scripts"))
# google/api/*.proto and google/rpc/*.proto lie beside their Python modules.
GOOGLEAPIS = Path(sysconfig.get_path("purelib"))


def protoc(*options: str) -> None:
    """Compile all files of the contract.

    Args:
        options: What protoc is to write, as its own options.

    Raises:
        subprocess.CalledProcessError: protoc found an error, and printed it.
    """
    sources = sorted((PROTO / PACKAGE).glob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"--proto_path={PROTO}", f"--proto_path={GOOGLEAPIS}"),
            *options,
            *map(str, sources),
        ],
        check=True,
        cwd=ROOT,
    )


def generate(into: Path) -> None:
    """Write the stubs and their type stubs as `into`/backchannel/v1/*."""
    protoc(
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        # "quiet" keeps the plugins from listing what they write.
        f"--plugin=protoc-gen-mypy={BIN / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
    )


def generated(folder: Path) -> dict[str, bytes]:
    """Read the generated files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_pb2*.py*"))}


def image(path: Path, *, source_info: bool) -> None:
    """Write the contract and all it imports as a FileDescriptorSet.

    Args:
        path: Where to.
        source_info: Keep comments and positions, which buf wants for its messages.
    """
    options = ["--include_source_info"] if source_info else []
    protoc("--include_imports", f"--descriptor_set_out={path}", *options)


def buf(*arguments: str) -> bool:
    """Run buf on the contract's own files, and tell whether it was content."""
    command = [str(BIN / "buf"), *arguments, "--config", str(PROTO / "buf.yaml")]
    command += ["--path", str(PACKAGE)]
    return subprocess.run(command, check=False, cwd=ROOT).returncode == 0


def short_hash() -> str:
    """The baseline's name in the CHANGELOG: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(BASELINE.read_bytes()).hexdigest()[:12]


def write_stubs() -> bool:
    """Replace the checked-in stubs by new ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        new = generated(Path(scratch) / PACKAGE)
    STUBS.mkdir(parents=True, exist_ok=True)
    for name in generated(STUBS).keys() - new.keys():
        (STUBS / name).unlink()
    for name, content in new.items():
        (STUBS / name).write_bytes(content)
    print(f"{STUBS.relative_to(ROOT)}: {len(new)} files")
    return True


def write_baseline() -> bool:
    """Make the contract as it is the one that buf breaking compares with."""
    image(BASELINE, source_info=False)
    if short_hash() not in CHANGELOG.read_text(encoding="utf-8"):
        print(f"Add to CHANGELOG.md what changed, naming it: contract {short_hash()}")
    return True


def check_stubs() -> bool:
    """Compare the checked-in stubs with new ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        new = generated(Path(scratch) / PACKAGE)
    old = generated(STUBS)
    stale = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    for name in stale:
        print(f"{STUBS.relative_to(ROOT) / name}: not what proto/ generates; run `make proto`")
    return not stale


def check_baseline() -> bool:
    """Look for breaks of the checked-in baseline, and for its CHANGELOG line."""
    if not BASELINE.exists():
        print(f"{BASELINE.relative_to(ROOT)}: missing; make it with `make proto-baseline`")
        return False
    with tempfile.TemporaryDirectory() as scratch:
        now = Path(scratch) / "now.binpb"
        image(now, source_info=True)
        unbroken = buf("breaking", str(now), "--against", str(BASELINE))
    if short_hash() in CHANGELOG.read_text(encoding="utf-8"):
        return unbroken
    print(
        f"{BASELINE.relative_to(ROOT)}: CHANGELOG.md does not name contract {short_hash()}; "
        "say there what changed for clients"
    )
    return False


def check_style() -> bool:
    """Run buf lint."""
    with tempfile.TemporaryDirectory() as scratch:
        now = Path(scratch) / "now.binpb"
        image(now, source_info=True)
        return buf("lint", str(now))


def check() -> bool:
    """Run every check, so that one run shows all that is wrong."""
    return all([check_style(), check_baseline(), check_stubs()])


COMMANDS: dict[str, Callable[[], bool]] = {
    "stubs": write_stubs,
    "baseline": write_baseline,
    "check": check,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        sys.exit(not COMMANDS[sys.argv[1]]())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
