"""Conversations as tokens: rendered by the shipped template, with a mask of what is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import jinja2
import numpy as np
from tokenizers import Tokenizer

from dialogue import context_drill, conversation, drill
from talk import Talk
from tokens import END, START

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
# So many conversations at the start have one or two exchanges, and two in five of them are drills:
# what answers what, and how to copy, is learned before how to keep it up in a long conversation.
SHORT_FIRST = 20_000
# Up to here two in three have at most five.
MIDDLING = 70_000
# Up to here one in 48 fills the whole context, afterwards one in 240: these cost the most time.
OFTEN_LONG = 25_500
# From here on two in five are drills in interrupts and follow-ups.
CONTEXT_DRILLS = 31_000
# And from here on three in five.
MORE_DRILLS = 39_500

_OPEN = f"{START}assistant\n"
_ANSWER = re.compile(re.escape(_OPEN) + r"(.*?)" + re.escape(END), re.DOTALL)


def template() -> jinja2.Template:
    """The chat template, with `tojson` as llama.cpp has it: no HTML escapes."""
    # Nothing here is HTML.
    environment = jinja2.Environment()  # noqa: S701
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


@dataclass(frozen=True)
class Sample:
    """Token ids and, for each, whether predicting it is learned."""

    ids: list[int]
    learn: list[bool]


class Encoder:
    """Turns a `Talk` into a `Sample`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.template = template()

    def text(self, talk: Talk) -> str:
        """The whole conversation as the model sees it."""
        return self.template.render(messages=talk.messages, tools=talk.tools)

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def sample(self, talk: Talk, rng: Random, broken: float = 0.12) -> Sample:
        """Tokens and mask: only the model's own words are learned.

        An answer that was cut teaches its words but not its end. Now and then an answer is spelled
        as if it had been cut and continued, since a cut may fall inside of a token; `broken` is how
        often.
        """
        text = self.text(talk)
        answers = [message for message in talk.messages if message["role"] == "assistant"]
        ids: list[int] = []
        learn: list[bool] = []

        def add(part: str, wanted: bool, drop: int = 0) -> None:
            new = self.ids(part)
            ids.extend(new)
            keep = max(0, len(new) - drop)
            learn.extend([wanted] * keep + [False] * (len(new) - keep))

        at = 0
        for match, message in zip(_ANSWER.finditer(text), answers, strict=True):
            add(text[at : match.start(1)], False)
            said = match.group(1)
            wanted = bool(message.get("loss", True))
            if message.get("cut"):
                add(said, wanted, drop=3)
                add(END, False)
            elif not message.get("tool_calls") and len(said) > 12 and rng.random() < broken:
                split = rng.randrange(2, len(said) - 2)
                add(said[:split], wanted, drop=3)
                add(said[split:] + END, wanted)
            else:
                add(said + END, wanted)
            at = match.end()
        add(text[at:], False)
        return Sample(ids, learn)


def batches(
    encoder: Encoder, seed: int, at: tuple[int, int], tokens: int, context: int
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Batches of about `tokens` tokens: ids, mask, and where the stream is after them.

    Conversations are grouped by length, one a row, so that positions are as in use and little is
    padded. The stream is a function of `seed` alone; `at` (first conversation of a pool, batches
    already taken from it) is where it is taken up.
    """
    start, skip = at
    pool = 256
    while True:
        samples = []
        for index in range(start, start + pool):
            often = index < OFTEN_LONG
            limit = context if index % (24 if often else 240) == 0 else context // 2
            exchanges = 40 if index % (48 if often else 240) == 0 else None
            if index < SHORT_FIRST:
                exchanges = 1 + index % 2
            elif index < MIDDLING and index % 3:
                exchanges = 1 + index % 5
            late = index >= CONTEXT_DRILLS
            if index < SHORT_FIRST and index % 5 < 2:
                talk = drill(f"{seed}/{index}")
            elif late and index % 5 < (2 if index < MORE_DRILLS else 3):
                talk = context_drill(f"{seed}/{index}")
            else:
                talk = conversation(f"{seed}/{index}", exchanges=exchanges)
            sample = encoder.sample(talk, Random(f"{seed}/{index}/mask"), 0.3 if late else 0.12)
            samples.append(Sample(sample.ids[:limit], sample.learn[:limit]))
        samples.sort(key=lambda sample: len(sample.ids))
        groups: list[list[Sample]] = [[]]
        for sample in samples:
            if groups[-1] and (len(groups[-1]) + 1) * len(sample.ids) > tokens:
                groups.append([])
            groups[-1].append(sample)
        Random(f"{seed}/{start}").shuffle(groups)
        for taken, group in enumerate(groups[skip:], skip + 1):
            length = max(len(sample.ids) for sample in group)
            ids = np.zeros((len(group), length), dtype=np.int64)
            mask = np.zeros((len(group), length), dtype=bool)
            for row, sample in enumerate(group):
                ids[row, : len(sample.ids)] = sample.ids
                mask[row, : len(sample.ids)] = sample.learn
            yield ids, mask, (start, taken)
        start, skip = start + pool, 0
