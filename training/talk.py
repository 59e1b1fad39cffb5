"""One conversation while it grows: who said what, what may be referred to, what is right."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import words
from knowledge import Topic
from wordings import PREFIXES, SUFFIXES

HELD_SHARE = 12  # One prompt in so many is held out.


def held_out(prompt: str) -> bool:
    """Whether these words are kept away from training."""
    return zlib.crc32(prompt.strip().lower().encode()) % HELD_SHARE == 0


class Talk:
    """One conversation while it grows, and what may be referred to in it."""

    def __init__(
        self, rng: Random, *, held: bool = False, novel: bool = False, tools: list[str] | None = None
    ) -> None:
        self.rng = rng
        self.held = held
        self.novel = novel
        self.messages: list[dict[str, Any]] = []
        self.tools: list[dict[str, Any]] = []
        self.argument = "expression"
        self.brief = False
        self.topic: Topic | None = None
        self.depth = ""
        self.cut: tuple[str, int] | None = None
        self.result = ""
        self.value = ""
        self.name = ""
        self.memo = ""
        self.question = ""
        self.lead = ""
        self._open(tools)

    def _open(self, names: list[str] | None) -> None:
        rng = self.rng
        if names is None:
            roll = rng.random()
            names = ["calculator", "clock"]
            if roll < 0.22:
                names = []
            elif roll < 0.32:
                names = ["calculator"]
            elif roll < 0.40:
                names = ["clock"]
            elif roll < 0.52:
                names += [tool for tool, _ in rng.sample(words.OTHER_TOOLS, rng.randint(1, 3))]
            elif roll < 0.56:
                names = [tool for tool, _ in rng.sample(words.OTHER_TOOLS, rng.randint(1, 3))]
            rng.shuffle(names)
            if rng.random() < 0.06:
                self.argument = rng.choice(("expr", "input", "formula", "text", "query"))
        others = dict(words.OTHER_TOOLS)
        for name in names:
            arguments = others.get(name, ())
            if name == "calculator":
                arguments = (self.argument,)
            elif name == "clock" and rng.random() < 0.05:
                arguments = ("zone",)
            properties = {argument: {"type": "string"} for argument in arguments}
            function = {"name": name, "parameters": {"type": "object", "properties": properties}}
            self.tools.append({"type": "function", "function": function})
        roll = rng.random()
        if roll < 0.38:
            text = fill(rng, rng.choice(words.SYSTEMS))
            if rng.random() < 0.3:
                text += " " + fill(rng, rng.choice(words.SYSTEMS))
            self.messages.append({"role": "system", "content": text})
        elif roll < 0.46:
            self.brief = True
            self.messages.append({"role": "system", "content": rng.choice(words.BRIEF_SYSTEMS)})

    def has(self, tool: str) -> bool:
        """Whether `tool` is declared."""
        return any(entry["function"]["name"] == tool for entry in self.tools)

    def user(self, text: str) -> None:
        """The user says `text`; a message right after another is joined to it."""
        rng = self.rng
        lead, self.lead = self.lead, ""
        text = lead + text
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == "user":
            last["content"] += rng.choice(("\n", "\n\n")) + text
            text = last["content"]
        else:
            self.messages.append({"role": "user", "content": text})
        self.question = text

    def ask(self, make: Callable[[], str]) -> None:
        """The user says what `make` returns, noised, from the training or the held-out share."""
        for _ in range(200):
            text = noise(self.rng, make())
            if held_out(text) == self.held:
                break
        self.user(text)

    def pick(self, known: tuple[str, ...], unseen: tuple[str, ...]) -> str:
        """One of the fixed wordings: the known ones, or the unseen ones of a novel talk."""
        return self.rng.choice(unseen if self.novel and unseen else known)

    def fixed(self, known: tuple[str, ...], unseen: tuple[str, ...]) -> None:
        """The user says one of the fixed wordings."""
        self.user(noise(self.rng, self.pick(known, unseen)))

    def reply(self, accept: tuple[str, ...] | list[str], category: str) -> None:
        """The model answers with one of `accept`."""
        self.cut = None
        self.messages.append(
            {
                "role": "assistant",
                "content": self.rng.choice(accept),
                "accept": list(accept),
                "category": category,
            }
        )

    def call(self, calls: list[tuple[str, dict[str, str]]], category: str) -> None:
        """The model calls tools."""
        self.cut = None
        entries = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
        self.messages.append({"role": "assistant", "content": "", "tool_calls": entries, "category": category})

    def tool(self, text: str) -> None:
        """A tool's result, as the client returned it."""
        self.messages.append({"role": "tool", "content": text})

    def interrupt(self) -> None:
        """Cut the last answer at a random character, as a reader's stop does."""
        last = self.messages[-1]
        text = last["content"]
        if last["role"] != "assistant" or len(text) < 30 or "tool_calls" in last:
            return
        at = self.rng.randint(4, len(text) - 6)
        last["content"] = text[:at].rstrip() if self.rng.random() < 0.5 else text[:at]
        last["cut"] = True
        self.cut = (text, at)


def fill(rng: Random, pattern: str) -> str:
    """Put random words into a pattern's places."""
    return pattern.format(
        place=rng.choice(words.PLACES),
        place2=rng.choice(words.PLACES),
        noun=rng.choice(words.NOUNS),
        noun2=rng.choice(words.NOUNS),
        name=rng.choice(words.NAMES),
        full=f"{rng.choice(words.NAMES)} {rng.choice(words.SURNAMES)}",
        language=rng.choice(words.LANGUAGES),
        code=rng.choice(words.CODE),
        job=rng.choice(words.JOBS),
        howto=rng.choice(words.HOWTO),
        small=rng.randint(1, 60),
        pseudo=pseudo(rng),
    )


def pseudo(rng: Random) -> str:
    """A word that does not exist."""
    syllable = "ba ko ri mu ten lar fi gos pel zu dra vin qua sto ner hil jom wex tra blu".split()
    return "".join(rng.choice(syllable) for _ in range(rng.randint(2, 4)))


def noise(rng: Random, text: str) -> str:
    """Write `text` as hurried people do."""
    if rng.random() < 0.10:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    if rng.random() < 0.07:
        text += rng.choice(SUFFIXES)
    if rng.random() < 0.35:
        text = text.lower()
    elif rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
    elif rng.random() < 0.02:
        text = text.upper()
    if rng.random() < 0.06 and len(text) > 12 and not any(c.isdigit() for c in text):
        at = rng.randrange(1, len(text) - 2)
        swap = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        text = rng.choice((swap, text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:]))
    return text
