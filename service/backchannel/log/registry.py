"""From a log's URL, as people write it in a flag, to the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from backchannel.errors import BackchannelError, Reason
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Log
from backchannel.log.sqlite import SqliteLog

GROUP: Final = "backchannel.logs"
"""Entry points of further logs: the name is the URL's scheme, the object a `Callable[[str], Log]`
that takes the whole URL and raises `BackchannelError` (`FIELD_INVALID`) if it is wrong."""

FIELD: Final = "log"


def open_log(url: str) -> Log:
    """The log that a URL names, to be opened by ``async with``.

    ``memory``, ``sqlite:///absolute/path`` (also ``sqlite:///~/in/my/home``), or the scheme of an
    installed log.

    Raises:
        BackchannelError: `FIELD_INVALID`: there is no such log, or its address is wrong.
    """
    scheme = url.partition(":")[0]
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme](url)
    found = list(entry_points(group=GROUP, name=scheme)) if scheme else []
    if not found:
        raise _invalid(f"there is no log {url!r}; there are: {', '.join(known_logs())}")
    try:
        opener: Callable[[str], Log] = found[0].load()
        return opener(url)
    except BackchannelError:
        raise
    except Exception as error:
        # A stranger's code: whatever is wrong with it, the person who chose it wants to know that.
        raise _invalid(
            f"the log {found[0].value!r} for {scheme}: does not load: {error}"
        ) from error


def known_logs() -> list[str]:
    """What may be given, for people: the built-in forms, then the schemes of installed logs."""
    others = {entry.name for entry in entry_points(group=GROUP)} - set(_BUILT_IN)
    return ["memory", "sqlite:///absolute/path", *(f"{name}:…" for name in sorted(others))]


def _memory(url: str) -> Log:
    if url != "memory":
        raise _invalid("the log in memory has no address; write `memory` alone")
    return MemoryLog()


def _sqlite(url: str) -> Log:
    if "?" in url or "#" in url:
        raise _invalid(
            "an sqlite log takes no options; write %3F for a `?` and %23 for a `#` in a name"
        )
    rest = unquote(url.removeprefix("sqlite:"))
    name = rest.removeprefix("//")
    if name.startswith("/~"):
        name = name[1:]
    if name.strip("/") in ("", ":memory:"):
        raise _invalid("name a file: sqlite:///absolute/path; for a log in memory write `memory`")
    if "\0" in name or name.endswith("/"):
        raise _invalid("name a file, not a folder: sqlite:///absolute/path")
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise _invalid(f"{error}; write the whole path: sqlite:///absolute/path") from error
    if rest == name or not path.is_absolute():
        whole = Path.cwd() / path
        raise _invalid(f"the path must be absolute, with three slashes; write sqlite://{whole}")
    # Four slashes, as other programs want them, leave one too many.
    return SqliteLog(Path("/" + str(path).lstrip("/")))


def _invalid(what: str) -> BackchannelError:
    return BackchannelError(Reason.FIELD_INVALID, what, field=FIELD)


_BUILT_IN: Final[Mapping[str, Callable[[str], Log]]] = {"memory": _memory, "sqlite": _sqlite}
