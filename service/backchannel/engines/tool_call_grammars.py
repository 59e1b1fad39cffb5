"""The forms in which models write tool calls, read character by character.

A grammar is a generator. It is given the characters after the opening tag, one at a time, tells
its `Sink` what it finds, and returns when the call is over, with those of the characters it was
given that are not part of it. It raises `NotACallError` if what it read is no call, which it does
not do once it has begun one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from typing import Final, Protocol

CLOSE: Final = "</tool_call>"

_MOST_NAME_CHARS: Final = 256
_MOST_TYPED_CHARS: Final = 2**16
_SPACE: Final = " \t\r\n"
_ARGUMENTS: Final = ("arguments", "parameters")
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
_FUNCTION_END: Final = "</function>"

Grammar = Generator[None, str, str]
"""Takes characters by `send`; returns those at the end of them that are not the call's."""


class NotACallError(Exception):
    """It is text."""


class Sink(Protocol):
    """Whom a grammar tells what it finds."""

    @property
    def ended(self) -> bool:
        """Whether this call has its arguments."""
        ...

    def start(self, name: str) -> None:
        """A call begins."""
        ...

    def argument(self, text: str) -> None:
        """Its arguments go on."""
        ...

    def end(self) -> None:
        """Its arguments are there."""
        ...


def call(sink: Sink, types: Mapping[str, Mapping[str, object]]) -> Grammar:
    """A call in either form.

    Args:
        sink: Is told of it.
        types: The types of the arguments, by tool and name.
    """
    char = yield from _next()
    if char == "{":
        return (yield from _json_call(sink))
    if char == "<":
        return (yield from _function_call(sink, types))
    raise NotACallError


def argument_types(schema: str) -> dict[str, object]:
    """The type of each argument, as a JSON schema has it; empty where it says nothing of it."""
    try:
        properties = json.loads(schema)["properties"]
        return {key: value.get("type", "") for key, value in properties.items()}
    # Whatever it is: then nothing is known of it.
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


# --- Hermes


def _json_call(sink: Sink) -> Grammar:
    """After `{`."""
    name = ""
    arguments: str | None = None
    while True:
        char = yield from _next()
        if char != '"':
            break
        raw, char = yield from _value(char)
        key = _string(raw)
        if char in _SPACE:
            char = yield from _next()
        if char != ":":
            break
        char = yield from _next()
        if key == "name" and not name and char == '"':
            raw, char = yield from _value(char)
            name = _string(raw)
            if not 0 < len(name) <= _MOST_NAME_CHARS:
                raise NotACallError
            if arguments is not None:
                _whole(sink, name, arguments)
        elif key in _ARGUMENTS and arguments is None and name and char == "{":
            sink.start(name)
            if not (yield from _object(sink)):
                return ""
            arguments = ""
            char = yield from _next()
        elif key in _ARGUMENTS and arguments is None:
            raw, char = yield from _value(char)
            arguments = _as_object(raw)
            if name:
                _whole(sink, name, arguments)
        elif key == "name" and not sink.ended:
            raise NotACallError
        else:
            _, char = yield from _value(char, keep=False)
        if char in _SPACE:
            char = yield from _next()
        if char != ",":
            if char == "}" and name and arguments is None:
                _whole(sink, name, "{}")
            break
    if not sink.ended:
        raise NotACallError
    return (yield from _closing(char))


def _whole(sink: Sink, name: str, arguments: str) -> None:
    sink.start(name)
    sink.argument(arguments)
    sink.end()


def _object(sink: Sink) -> Generator[None, str, bool]:
    """After `{`: pass an object on; False if it broke, and with it the call ended."""
    sink.argument("{")
    closers = ["}"]
    quoted = escaped = False
    while closers:
        char = yield
        if char == "<" and not quoted:
            yield from _broken(sink, char)
            return False
        sink.argument(char)
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = char == "\\", char != '"'
        elif char == '"':
            quoted = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
        elif char in "}]" and char != closers.pop():
            yield from _broken(sink)
            return False
    sink.end()
    return True


def _value(char: str, *, keep: bool = True) -> Generator[None, str, tuple[str, str]]:
    """A JSON value that begins with `char`, as it stands, and the character after it."""
    raw = [char]
    closers = []
    if char in "{[":
        closers.append("}" if char == "{" else "]")
    quoted, escaped = char == '"', False
    if not closers and not quoted:
        while (char := (yield)) not in ",}]<" + _SPACE:
            if keep:
                raw.append(char)
        return "".join(raw), char
    while quoted or closers:
        char = yield
        if keep:
            raw.append(char)
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = char == "\\", char != '"'
        elif char == '"':
            quoted = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
        elif char in "}]" and char != closers.pop():
            raise NotACallError
    return "".join(raw), (yield)


def _as_object(raw: str) -> str:
    """Arguments that are not an object by themselves: in a string, or none. Else as they stand."""
    if raw == "null":
        return "{}"
    if raw.startswith('"'):
        try:
            text = str(json.loads(raw, strict=False))
        except ValueError:
            return raw
        if not text.strip():
            return "{}"
        if text.lstrip().startswith("{"):
            return text
    return raw


def _string(raw: str) -> str:
    """What a JSON string says."""
    try:
        # Models put line ends into strings as they are.
        return str(json.loads(raw, strict=False))
    except ValueError:
        raise NotACallError from None


# --- Qwen3-Coder


def _function_call(sink: Sink, types: Mapping[str, Mapping[str, object]]) -> Grammar:
    """After `<`: arguments are raw text, which the tool's schema makes into JSON."""
    yield from _exactly("function=")
    tag = yield from _tag_value()
    name = tag[:-1].strip()
    if not name or tag[-1] != ">":
        raise NotACallError
    known = types.get(name, {})
    given = 0
    while True:
        tag = yield from _next()
        while _PARAMETER.startswith(tag) or _FUNCTION_END.startswith(tag):
            if tag == _PARAMETER:
                tag += yield from _tag_value()
            elif tag == _FUNCTION_END:
                tag = ""
                break
            else:
                tag += yield
        if not tag or (given and CLOSE.startswith(tag)):
            break
        if tag[-1] != ">" or not tag.startswith(_PARAMETER):
            if not given:
                raise NotACallError
            yield from _broken(sink, tag)
            return ""
        if not given:
            sink.start(name)
        key = tag[len(_PARAMETER) : -1].strip()
        sink.argument(("{" if not given else ", ") + _quoted(key) + ": ")
        given += 1
        if known.get(key, "string") == "string":
            yield from _string_value(sink)
        else:
            yield from _typed_value(sink)
    if not given:
        sink.start(name)
    sink.argument("}" if given else "{}")
    sink.end()
    return (yield from (_close_tag(tag) if tag else _closing((yield from _next()))))


def _string_value(sink: Sink) -> Generator[None, str, None]:
    sink.argument('"')
    yield from _raw_value(lambda char: sink.argument(_quoted(char)[1:-1]))
    sink.argument('"')


def _typed_value(sink: Sink) -> Generator[None, str, None]:
    """A value that is held back until it is clear what it is; one that is too long is as it is."""
    held: list[str] = []
    long = False

    def keep(char: str) -> None:
        nonlocal long
        held.append(char)
        if len(held) > _MOST_TYPED_CHARS:
            long = True
            sink.argument("".join(held))
            held.clear()

    yield from _raw_value(keep)
    text = "".join(held)
    sink.argument(text if long else _typed(text.strip()))


def _raw_value(take: Callable[[str], None]) -> Generator[None, str, None]:
    """Text up to `</parameter>`, without a line end at either side, character by character."""
    held = yield
    if held == "\n":
        held = ""
    while True:
        tag = held.removeprefix("\n")
        if tag == _PARAMETER_END:
            return
        if held and not _PARAMETER_END.startswith(tag):
            take(held[0])
            held = held[1:]
        else:
            held += yield


def _typed(text: str) -> str:
    """What is no string by its schema, as JSON if it is that."""
    word = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        json.loads(word)
    except ValueError:
        return _quoted(text)
    return word


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _exactly(text: str) -> Generator[None, str, None]:
    for expected in text:
        if (yield) != expected:
            raise NotACallError


def _tag_value() -> Generator[None, str, str]:
    """A tag's text with its end, `>`; without it if there is none."""
    text = ""
    while True:
        text += yield
        if text[-1] in "<>\n" or len(text) > _MOST_NAME_CHARS:
            return text


# --- both


def _broken(sink: Sink, held: str = "") -> Generator[None, str, None]:
    """Pass on whatever comes up to the closing tag, of which `held` may be the beginning."""
    try:
        while held != CLOSE:
            while held and not CLOSE.startswith(held):
                sink.argument(held[0])
                held = held[1:]
            held += yield
    except GeneratorExit:
        sink.argument(held)
        raise
    sink.end()


def _closing(char: str) -> Grammar:
    """The rest of the frame, `char` first. A brace too many is the frame's, words are not."""
    space = ""
    while char in _SPACE or char in "}]":
        space = space + char if char in _SPACE else ""
        char = yield
    rest = yield from _close_tag(char)
    return space + rest if rest else ""


def _close_tag(held: str) -> Grammar:
    """The closing tag, of which `held` has been read; anything else is given back."""
    while CLOSE.startswith(held):
        if held == CLOSE:
            return ""
        held += yield
    return held


def _next() -> Generator[None, str, str]:
    """The next character that is not white space."""
    while (char := (yield)) in _SPACE:
        pass
    return char
