"""What `backchannel chat` does, from the first connection to the goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import termios
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backchannel.cli.connect import (
    DEFAULT_SERVER,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    connect,
)
from backchannel.cli.screen import Screen
from backchannel.cli.talk import Said, Talk
from backchannel.cli.tools import builtin_tools
from backchannel.client import (
    Client,
    Conversation,
    Delivery,
    FinishReason,
    Model,
    SessionGoneError,
    StatusError,
    Tool,
)
from backchannel.v1.event_pb2 import TurnFinished

if TYPE_CHECKING:
    # Only where there is a terminal.
    from backchannel.cli.prompt import Prompt

# Where nobody watches, a server that does not come back is given up.
_UNWATCHED_PATIENCE_S: Final = 60.0
# The seq of a session in which there is nothing but its beginning.
_NOTHING_SAID_SEQ: Final = 1
# Said before a message while an answer is under way: how soon it wants to be heard.
_SOONER: Final = {
    "/steer": Delivery.DELIVERY_STEER,
    "/now": Delivery.DELIVERY_INTERRUPT,
}
_EDIT: Final = "/edit"
# Said in place of one: the last is to be said again, in a session that has not heard it.
_ANEW: Final = ("/retry", _EDIT)
# An answer that ended so is all there is.
_WHOLE: Final = (FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat as it was asked for.

    Attributes:
        server: Where.
        model: Whom to talk to. Empty: the server's default.
        system: What the model is told first.
        session: The session to go on with. Empty: a new one.
        with_tools: Whether to bring tools along.
        engine_options: Settings of the engine.
        message: The one thing to say. None: whatever is typed.
    """

    server: str
    model: str
    system: str
    session: str
    with_tools: bool
    engine_options: Mapping[str, str]
    message: str | None

    async def run(self) -> int:
        """Chat; the exit code."""
        with _quiet_keyboard():
            return await self._run()

    async def _run(self) -> int:
        screen = Screen(sys.stdout, sys.stderr)
        watched = self.message is None
        talk = Talk(screen, figures=screen.is_terminal, only_mine=not watched)
        patience_s = None if watched else _UNWATCHED_PATIENCE_S
        async with connect(self.server, give_up_after_s=patience_s) as client:
            about = None if self.session else await self._find(client)
            conversation = self._open(client, talk, about)
            async with conversation:
                talk.attach(conversation)
                if self.message is not None:
                    try:
                        return await self._once(talk, screen, conversation, self.message)
                    except StatusError:
                        # Refused, so nothing was said in it, and its id was told to nobody.
                        if not self.session and conversation.seq <= _NOTHING_SAID_SEQ:
                            await client.delete(conversation.session_id)
                        raise
                said = await self._chat(talk, screen, conversation, about)
            while isinstance(said, Said):
                conversation = await self._anew(client, talk, screen, conversation, said)
                async with conversation:
                    talk.attach(conversation)
                    said = await self._chat(talk, screen, conversation, None, said.text)
            if not said and not self.session:
                # Nothing was said: nobody wants to find it again.
                await client.delete(conversation.session_id)
            else:
                screen.note(f"The session is kept. Go on with:\n  {self._again(conversation)}")
            return 0

    async def _anew(
        self, client: Client, talk: Talk, screen: Screen, before: Conversation, said: Said
    ) -> Conversation:
        """A session in which a message has not been said yet."""
        forked = await client.fork(before.session_id, said.seq - 1)
        old = self._again(before)
        screen.note(f"In a new session, as it was before that. The old one is kept:\n  {old}")
        return client.resume(
            forked.session_id,
            after_seq=forked.last_seq,
            snapshot_if_trimmed=True,
            tools=self._tools(None),
            on_connection=talk.connection,
        )

    def _open(self, client: Client, talk: Talk, about: Model | None) -> Conversation:
        tools = self._tools(about)
        if self.session:
            return client.resume(
                self.session,
                snapshot=True,
                snapshot_if_trimmed=True,
                tools=tools,
                on_connection=talk.connection,
            )
        return client.converse(
            model=self.model,
            system=self.system,
            tools=tools,
            engine_options=self.engine_options,
            snapshot_if_trimmed=True,
            on_connection=talk.connection,
        )

    async def _find(self, client: Client) -> Model | None:
        models = await client.models()
        return next((model for model in models if self.model in ("", model.name)), None)

    def _tools(self, about: Model | None) -> list[Tool]:
        if not self.with_tools or (about is not None and "tools" not in about.capabilities):
            return []
        return builtin_tools()

    def _again(self, conversation: Conversation) -> str:
        server = "" if self.server == DEFAULT_SERVER else f" --server {self.server}"
        return f"backchannel chat{server} --session {conversation.session_id}"

    async def _once(
        self, talk: Talk, screen: Screen, conversation: Conversation, message: str
    ) -> int:
        """One message, one answer."""
        finished = await _watched(talk, talk.ask(message))
        screen.note(f"session {conversation.session_id}")
        if finished is None or finished.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED:
            return EXIT_INTERRUPTED
        return 0 if finished.finish_reason in _WHOLE else EXIT_FAILED

    async def _chat(
        self,
        talk: Talk,
        screen: Screen,
        conversation: Conversation,
        about: Model | None,
        first: str = "",
    ) -> bool | Said:
        """One message after the other, until somebody leaves.

        Returns:
            Whether anything was said; or what is to be said in place of the last message.
        """
        from backchannel.cli.prompt import Prompt

        prompt = Prompt()
        said = leaving = False
        if first:
            screen.said(first)
        else:
            self._welcome(screen, about, conversation)
        if conversation.snapshot is not None:
            try:
                await _watched(talk, talk.show(conversation.snapshot), prompt, screen)
            except _LeaveError:
                return said
        while True:
            try:
                text = first or (await prompt.ask()).strip()
            except EOFError:
                return said
            except KeyboardInterrupt:
                if leaving and not prompt.text:
                    return said
                leaving = True
                screen.note("Once more, or Ctrl-D, to leave.")
                continue
            if not text:
                continue
            if not first and text in _ANEW:
                if talk.last is None:
                    screen.note("Nothing was said here yet.", "yellow")
                    continue
                again = talk.last.text
                if text == _EDIT:
                    try:
                        again = (await prompt.ask(again)).strip()
                    except (EOFError, KeyboardInterrupt):
                        continue
                if again:
                    return Said(again, talk.last.seq)
                continue
            first, said = "", True
            try:
                finished = await _watched(talk, talk.ask(text), prompt, screen)
            except _LeaveError:
                return said
            except SessionGoneError:
                raise
            except StatusError as error:
                screen.note(str(error), "red")
                continue
            screen.gap()
            # Whoever has just stopped an answer and does it again wants to leave.
            leaving = (
                finished is None or finished.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
            )

    def _welcome(self, screen: Screen, about: Model | None, conversation: Conversation) -> None:
        screen.note(f"{conversation.session.config.model} at {self.server}", "bold")
        if about is not None and about.description:
            screen.note(about.description)
        screen.note("Ctrl-C stops an answer, a second one leaves, and so does Ctrl-D.")
        screen.note("Type while it speaks to be next; /steer or /now to be sooner. /retry, /edit.")
        screen.gap()


class _LeaveError(Exception):
    """The user has had enough."""


async def _watched(
    talk: Talk,
    showing: Coroutine[None, None, TurnFinished | None],
    prompt: Prompt | None = None,
    screen: Screen | None = None,
) -> TurnFinished | None:
    """Show an answer; Ctrl-C stops it, and whoever types may say something more.

    Raises:
        _LeaveError: Ctrl-C once more, or Ctrl-D.
    """
    task = asyncio.create_task(showing)

    def interrupted() -> None:
        if not talk.stop():
            task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        while prompt is not None and screen is not None and await _typed_before(task):
            await _interject(talk, prompt, screen)
            # The prompt has had the signal for itself.
            loop.add_signal_handler(signal.SIGINT, interrupted)
        return await task
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if this is not None and this.cancelling():
            raise
        raise _LeaveError from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def _typed_before(task: asyncio.Task[TurnFinished | None]) -> bool:
    """Whether a key was pressed before the answer had been shown. The key is still to be read."""
    loop = asyncio.get_running_loop()
    pressed = asyncio.Event()
    loop.add_reader(sys.stdin, pressed.set)
    pressing = asyncio.ensure_future(pressed.wait())
    try:
        await asyncio.wait([task, pressing], return_when=asyncio.FIRST_COMPLETED)
        return not task.done()
    finally:
        pressing.cancel()
        loop.remove_reader(sys.stdin)


async def _interject(talk: Talk, prompt: Prompt, screen: Screen) -> None:
    """Let somebody say something while an answer is under way.

    Raises:
        _LeaveError: They have had enough.
    """
    talk.pause()
    try:
        text = (await prompt.ask(aside=True)).strip()
        delivery = Delivery.DELIVERY_QUEUE
        for command, sooner in _SOONER.items():
            if text == command or text.startswith(f"{command} "):
                text, delivery = text.removeprefix(command).strip(), sooner
        if text:
            await talk.interject(text, delivery)
    except EOFError:
        raise _LeaveError from None
    except KeyboardInterrupt:
        if not prompt.text:
            talk.stop()
    except SessionGoneError:
        raise
    except StatusError as error:
        screen.note(str(error), "red")
    finally:
        talk.resume()


@contextlib.contextmanager
def _quiet_keyboard() -> Iterator[None]:
    """Keys do not show up in the middle of an answer; they are there at the next prompt."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
