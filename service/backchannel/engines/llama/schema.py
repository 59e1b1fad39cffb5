"""Refuses JSON schemas that llama.cpp would choke on, or would not hold an answer to.

llama.cpp turns a schema into a grammar. It trusts whoever wrote it: a minimum above its maximum
keeps the thread that computes everybody's answers for ever. And what it has no grammar for it
leaves out without a word, so the answer may break the schema that the client relies on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from backchannel.engines.llama.grammar import MOST_BYTES, MOST_TIMES
from backchannel.errors import BackchannelError, Reason

MOST_DEEP: Final = 64
"""Objects and lists within each other."""
MOST_PROPERTIES: Final = 200
"""All together: optional ones take time and memory by their square."""

_SAYS_NOTHING: Final = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_ALONE: Final = ("$ref", "anyOf", "oneOf", "const", "enum")
"""Beside one of these llama.cpp reads nothing else."""
_OF_TYPE: Final[Mapping[str, str]] = {
    "additionalProperties": "object",
    "properties": "object",
    "required": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "maxItems": "array",
    "minLength": "string",
    "maxLength": "string",
    "pattern": "string",
    "minimum": "integer",
    "maximum": "integer",
    "exclusiveMinimum": "integer",
    "exclusiveMaximum": "integer",
}
_BOUNDS: Final = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minimum", "maximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
)
_LISTS: Final = ("anyOf", "oneOf", "prefixItems")
_MAPS: Final = ("properties", "$defs", "definitions")
_ONES: Final = ("additionalProperties", "items")
_SHAPES: Final = (
    ("type", (str, list), "type"),
    ("enum", list, "list"),
    ("required", list, "list"),
    ("properties", dict, "object"),
    ("pattern", str, "text"),
    ("anyOf", list, "list"),
    ("oneOf", list, "list"),
    ("prefixItems", list, "list"),
)
_FORMATS: Final = ("date", "date-time", "time", "uuid")
"""Those that llama.cpp knows; others say nothing."""

# What it writes as it stands, and what cannot break the quotes around it.
_PATTERN: Final = re.compile(
    r"""\^(?:
        [A-Za-z0-9 _:;,@=/&%~!'<>#-] | \\[.+*?()\[\]{}|^$/-]
      | \[(?:[A-Za-z0-9 _:;,.@=/+%~]|[A-Za-z0-9]-[A-Za-z0-9])+\]
      | \( | \) | \| | [*+?] | \{[0-9]{1,4}(?:,[0-9]{0,4})?\}
    )*\$""",
    re.VERBOSE,
)
_ATOMS: Final = re.compile(r"\\.|\[[^\]]*\]")
_NOTHING_REPEATED: Final = re.compile(r"[\^(|*+?}][*+?{]")
_ESCAPE_REPEATED: Final = re.compile(r"\\.[*+?{]")
"""llama.cpp then repeats what stands in front of it, too."""
_COUNTS: Final = re.compile(r"(?<!\\)\{([0-9]+)(?:(,)([0-9]*))?\}")


def check_schema(text: str, field: str, *, strictly: bool) -> None:
    """Refuse what would hurt the server; `strictly` also what an answer would not be held to.

    Args:
        text: The schema, as JSON.
        field: Its field, for the error.
        strictly: False for a tool's arguments, where a looser schema does no harm: whoever runs
            the tool checks them.

    Raises:
        BackchannelError: `FIELD_INVALID` with the place in the schema, or `FIELD_TOO_LONG`.
    """
    if len(text.encode()) > MOST_BYTES:
        raise BackchannelError(
            Reason.FIELD_TOO_LONG,
            f"has {len(text.encode())} bytes; the embedded engine takes schemas of at most "
            f"{MOST_BYTES}",
            field=field,
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise BackchannelError(
            Reason.FIELD_INVALID, "must be JSON, nested 64 deep at most", field=field
        ) from None
    _Checking(schema, field, strictly).run()


class _Checking:
    """One schema, walked through."""

    def __init__(self, schema: object, field: str, strictly: bool) -> None:
        self._schema = schema
        self._field = field
        self._strictly = strictly
        self._properties = 0

    def run(self) -> None:
        """All of it."""
        self._look_for_harm(self._schema, "#", 0)
        if self._strictly:
            self._hold(self._schema, "#")

    def _look_for_harm(self, node: object, place: str, deep: int) -> None:
        """Walk through everything: a `$ref` may lead to where no schema is looked for."""
        if deep > MOST_DEEP:
            self._refuse("#", f"is nested more than {MOST_DEEP} deep, objects and lists together")
        if isinstance(node, list):
            for at, child in enumerate(node):
                self._look_for_harm(child, f"{place}/{at}", deep + 1)
        if not isinstance(node, dict):
            return
        for low, high in _BOUNDS:
            least, most = node.get(low), node.get(high)
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                self._refuse(place, f"has {low} {least} above {high} {most}")
        if isinstance(pattern := node.get("pattern"), str):
            for fewest, comma, highest in _COUNTS.findall(pattern):
                times = int(fewest), int((highest if comma else fewest) or MOST_TIMES)
                if times[0] > times[1] or times[1] > MOST_TIMES:
                    self._refuse(
                        place,
                        f"has a pattern that repeats something {times[0]} to {times[1]} times; "
                        f"llama.cpp counts to {MOST_TIMES}",
                    )
        if isinstance(found := node.get("properties"), dict):
            self._properties += len(found)
            if self._properties > MOST_PROPERTIES:
                self._refuse("#", f"has more than {MOST_PROPERTIES} properties, all together")
        for name, child in node.items():
            self._look_for_harm(child, f"{place}/{name}", deep + 1)

    def _hold(self, node: object, place: str) -> None:
        """Walk through the schemas: is each one of those that are held to the letter?"""
        if place.endswith("/additionalProperties") and isinstance(node, bool):
            return
        if not isinstance(node, dict):
            self._refuse(place, "must be an object; llama.cpp takes no other schema here")
        self._check_held(node, place)
        for name in ("minLength", "maxLength", "minItems", "maxItems"):
            count = node.get(name, 0)
            if type(count) is not int or not 0 <= count <= MOST_TIMES:
                self._refuse(place, f"has a {name} that is no whole number from 0 to {MOST_TIMES}")
        if "pattern" in node:
            self._check_pattern(node["pattern"], place)
        for name, child in _children(node):
            self._hold(child, f"{place}/{name}")

    def _check_pattern(self, pattern: str, place: str) -> None:
        """Only what is turned into a grammar whole, and cannot write a quote or a line's end."""
        open_groups, why = 0, ""
        for match in re.finditer(r"\\.|\[[^\]]*\]|[()|]", pattern):
            open_groups += {"(": 1, ")": -1}.get(match[0], 0)
            if open_groups < 0 or (match[0] == "|" and not open_groups):
                why = "alternatives stand in parentheses"
        if (
            open_groups
            or not _PATTERN.fullmatch(pattern)
            or _NOTHING_REPEATED.search(_ATOMS.sub("x", pattern))
            or _ESCAPE_REPEATED.search(pattern)
        ):
            why = why or (
                "write ^ and $ around letters, digits, classes such as [a-z0-9], groups and counts"
            )
        if why:
            self._refuse(place, f"has a pattern that llama.cpp does not hold whole; {why}")

    def _check_held(self, node: Mapping[str, Any], place: str) -> None:
        says = [name for name in node if name not in _SAYS_NOTHING]
        for name in says:
            if name in _ALONE and len(others := [one for one in says if one != name]) > 0:
                # The type of what is listed anyway changes nothing.
                if name in ("const", "enum") and others == ["type"]:
                    continue
                self._refuse(place, f"has {others[0]} beside {name}, which llama.cpp leaves out")
            if name not in (*_ALONE, *_OF_TYPE, "type", "format"):
                self._refuse(place, f"has {name[:32]}, which llama.cpp does not hold; leave it out")
        for name, kind, called in _SHAPES:
            if name in node and not isinstance(node[name], kind):
                self._refuse(place, f"has a {name} that is no {called}")
        self._check_types(node, says, place)
        if (ref := node.get("$ref")) is not None and not self._resolves(ref):
            self._refuse(place, 'has a $ref that leads nowhere; it is to begin with "#/"')
        if node.get("enum") == []:
            self._refuse(place, "has an enum without values")
        for name in node.get("required", ()):
            if name not in node.get("properties", ()):
                self._refuse(place, f"requires {name!r:.32}, which is not in its properties")

    def _check_types(self, node: Mapping[str, Any], says: Sequence[str], place: str) -> None:
        given = node.get("type", [])
        types = [given] if isinstance(given, str) else given
        for name in says:
            wanted = _OF_TYPE.get(name)
            implied = name in ("properties", "required") and "properties" in node
            if wanted is not None and wanted not in types and not implied:
                self._refuse(place, f'has {name}, for which it needs "type": "{wanted}"')
            if wanted == "integer" and ("number" in types or type(node[name]) is not int):
                self._refuse(place, f"has {name}, which llama.cpp holds for whole numbers only")
        lengths = [name for name in ("minLength", "maxLength") if name in node]
        for one in ("pattern", "format"):
            if one in node and lengths and (one == "pattern" or node[one] in _FORMATS):
                self._refuse(place, f"has {lengths[0]} beside {one}, which llama.cpp leaves out")
        if "pattern" in node and node.get("format") in _FORMATS:
            self._refuse(place, "has both pattern and format; llama.cpp holds one of them")
        if "prefixItems" in node and (set(node) & {"items", "minItems", "maxItems"}):
            self._refuse(place, "has items or their count beside prefixItems; leave them out")

    def _resolves(self, ref: object) -> bool:
        if not isinstance(ref, str) or not ref.startswith("#/"):
            return False
        node = self._schema
        for step in ref[2:].split("/"):
            if not isinstance(node, dict) or step not in node:
                return False
            node = node[step]
        return isinstance(node, dict)

    def _refuse(self, place: str, why: str) -> NoReturn:
        raise BackchannelError(Reason.FIELD_INVALID, f"at {place[:128]}: {why}", field=self._field)


def _children(node: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The schemas in a schema, each with its way there."""
    for name in _LISTS:
        if isinstance(found := node.get(name), list):
            yield from ((f"{name}/{at}", child) for at, child in enumerate(found))
    for name in _MAPS:
        if isinstance(found := node.get(name), dict):
            yield from ((f"{name}/{key}", child) for key, child in found.items())
    for name in _ONES:
        if name in node:
            yield name, node[name]
