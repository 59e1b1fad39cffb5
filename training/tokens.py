"""The tokenizer: byte-level BPE of 1,024 tokens, every digit a token of its own.

A digit that is never merged with its neighbour lets a very small model copy numbers, which is all
that its arithmetic needs. The splitting rule is the one that llama.cpp knows as ``qwen2``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1024
PRE_NAME = "qwen2"
PRE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PAD = "<|pad|>"
START = "<|im_start|>"
END = "<|im_end|>"
CALL = "<tool_call>"
CALL_END = "</tool_call>"
# Control tokens are never shown; the two tags are ordinary text for whoever parses tool calls.
CONTROL = (PAD, START, END)
TAGS = (CALL, CALL_END)

_OPERATORS = re.compile(r"([()*/+])")


def train(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from rendered conversations.

    Operators are set apart first, so that no merge glues one to its neighbour and an expression is
    always spelled the same way.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*CONTROL, *TAGS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    apart = (_OPERATORS.sub(r" \1 ", text) for text in texts)
    tokenizer.train_from_iterator(apart, trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Read a tokenizer that :func:`train` made and ``save`` wrote."""
    return Tokenizer.from_file(str(path))


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens by id and the merges, as a GGUF file wants them."""
    state = json.loads(tokenizer.to_str())
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    return [by_id[index] for index in range(len(by_id))], merges
