"""The line one types on."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

_PROMPT = FormattedText([("ansicyan bold", "> ")])
_ASIDE = FormattedText([("ansiyellow bold", ">> ")])


class Prompt:
    """Asks for the next message, with history over all chats (Up, Ctrl-R).

    Enter sends, Alt-Enter makes a new line.
    """

    def __init__(self) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=_keys(),
            enable_history_search=True,
            # There is no menu of completions.
            reserve_space_for_menu=0,
        )

    async def ask(self, text: str = "", *, aside: bool = False) -> str:
        """The next message.

        Args:
            text: What stands there to begin with.
            aside: Whether an answer is under way.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C.
        """
        # A note that comes in meanwhile is printed above the line, not into it.
        with patch_stdout(raw=True):
            return await self._session.prompt_async(_ASIDE if aside else _PROMPT, default=text)

    @property
    def text(self) -> str:
        """What had been typed when the asking ended."""
        return self._session.default_buffer.text


def _history() -> History:
    """A file that only its owner can read: people say all sorts of things."""
    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def history_path() -> Path:
    """Where the history is kept."""
    return user_state_path("backchannel") / "chat_history"


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
