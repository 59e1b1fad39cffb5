"""Text to tokens, and tokens to text while they come, never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from tokenizers import Tokenizer

from backchannel.engines.smg.files import BadFilesError, TokenizerFiles

_PRIMING: Final = 5
"""So many tokens of the prompt decide how the first one after it is spaced."""

_MOST_PENDING: Final = 8
"""A character has at most four bytes. What is not one after so many tokens never will be."""

_REPLACEMENT: Final = "\ufffd"


class ModelTokenizer:
    """A model's tokenizer.

    Args:
        files: The model's files.
        shown: Control tokens that are part of what the model says, such as tags.

    Raises:
        BadFilesError: There is none among them.
    """

    def __init__(self, files: TokenizerFiles, shown: Iterable[str] = ()) -> None:
        text = files.text("tokenizer.json")
        if text is None:
            raise BadFilesError(
                "the model has no tokenizer.json; make one by save_pretrained of transformers, "
                "and name its folder by tokenizer"
            )
        try:
            tokenizer = Tokenizer.from_str(text)
        # The library raises plain exceptions.
        except Exception as error:
            raise BadFilesError(f"tokenizer.json cannot be read ({str(error)[:200]})") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        shown = set(shown)
        self.hidden = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content not in shown
        )
        self.stop_ids = frozenset(self._stop_ids(files))

    def has(self, token: str) -> bool:
        """Whether a text is one token."""
        return self._tokenizer.token_to_id(token) is not None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, which names its control tokens itself. Slow for a long one."""
        # Unlike `encode` this leaves the interpreter to others while it works.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; half a character is U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _stop_ids(self, files: TokenizerFiles) -> Iterable[int]:
        """The tokens that end an answer, by each of the files that say so."""
        for name in ("config.json", "generation_config.json"):
            found: Any = files.json(name).get("eos_token_id")
            yield from (
                token_id
                for token_id in (found if isinstance(found, list) else [found])
                if isinstance(token_id, int)
            )
        eos = files.json("tokenizer_config.json").get("eos_token")
        if isinstance(eos, dict):
            eos = eos.get("content")
        if isinstance(eos, str):
            found = self._tokenizer.token_to_id(eos)
            if found is not None:
                yield found


class Detokenizer:
    """Makes text of the tokens of one answer.

    A token's text depends on those before it, and may end in the middle of a character. So the
    last ones that had a text are decoded again with each new one, and the difference is new.

    Args:
        tokenizer: The model's.
        prompt_ids: What the answer follows.
    """

    def __init__(self, tokenizer: ModelTokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_PRIMING:])
        self._said = len(self._ids)  # How many of them have been decoded whole.
        self._prefix = tokenizer.decode(self._ids)

    def feed(self, token_id: int) -> str:
        """The text that is certain with one token more."""
        if token_id in self._tokenizer.hidden or token_id in self._tokenizer.stop_ids:
            return ""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._said < _MOST_PENDING:
            return ""
        return self._advance(text)

    def rest(self) -> str:
        """What was held back: half a character, for the answer has ended."""
        if len(self._ids) == self._said:
            return ""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        new_ids = self._ids[self._said :]
        if text.startswith(self._prefix):
            new = text[len(self._prefix) :]
        else:  # A decoder that changes what was; then the tokens stand for themselves.
            new = self._tokenizer.decode(new_ids)
        self._ids = new_ids
        self._said = len(new_ids)
        self._prefix = self._tokenizer.decode(new_ids)
        return new
