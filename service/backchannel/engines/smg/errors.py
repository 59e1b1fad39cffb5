"""What goes wrong with a server that speaks gRPC, each in words that say who has to mend what.

A message goes to clients: it names the engine and its settings, never the server's address, its
key, or anything of the conversation. What the server says itself is passed on only of a request
that it refused, and only if nothing of the conversation is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import grpc

from backchannel.engines.protocol import Prompt
from backchannel.errors import BackchannelError, Reason

_SHOWN: Final = 300
"""How much of a server's words is passed on."""
_QUOTE: Final = 12
"""So many characters in a row, of the conversation's, are a quotation."""

_NOT_GRPC: Final = ("http1.x", "http2 header with status", "content-type", "invalid header")
_UNREADABLE: Final = ("deserializ", "parsing")

_REFUSED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
    }
)


@dataclass(frozen=True, slots=True)
class Blame:
    """Makes errors about one engine's server.

    Attributes:
        engine: Its name.
        key_source: What its key came from: the setting's name; empty for no key.
    """

    engine: str
    key_source: str

    def of(
        self, error: grpc.aio.AioRpcError, prompt: Prompt | None = None, *, begun: bool = False
    ) -> BackchannelError:
        """Why a call failed.

        Args:
            error: What gRPC says.
            prompt: What was asked, which must not come back in the message.
            begun: Whether a part of the answer had come.
        """
        code, details = error.code(), error.details() or ""
        lower = details.lower()
        if any(word in lower for word in _NOT_GRPC) or code is grpc.StatusCode.UNIMPLEMENTED:
            return self._of(
                Reason.UPSTREAM_NOT_AN_API,
                "does not speak this protocol there; is target in "
                f"{self._section} the port of its gRPC, and dialect right? vLLM has it with "
                "vllm serve --grpc",
            )
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return self._of(Reason.UPSTREAM_UNAUTHORIZED, self._key(code.name))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self._of(
                Reason.UPSTREAM_RATE_LIMITED,
                "takes no more requests for now; send the message again later",
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.stalled("did not answer in time")
        if code is grpc.StatusCode.UNAVAILABLE and not begun:
            return self._of(
                Reason.UPSTREAM_UNREACHABLE,
                f"cannot be reached; is it running, and are target and tls in {self._section} "
                "right?",
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return self.broke_off()
        if any(word in lower for word in _UNREADABLE):
            return self._of(
                Reason.UPSTREAM_UNREADABLE, "sent what cannot be read; is dialect right?"
            )
        if code in _REFUSED:
            words = _words(details, prompt)
            return self._of(
                Reason.UPSTREAM_REFUSED,
                f"refuses the request ({code.name})"
                + (f": {words}" if words else "; its own log says why"),
            )
        return self._of(
            Reason.UPSTREAM_FAILED,
            f"failed ({code.name}); its own log says why. Send the message again",
        )

    def broke_off(self) -> BackchannelError:
        """The answer ended without an end."""
        return self._of(Reason.UPSTREAM_BROKE_OFF, "broke the answer off; send the message again")

    def failed(self) -> BackchannelError:
        """The answer ended in an error."""
        return self._of(
            Reason.UPSTREAM_FAILED,
            "gave the answer up; its own log says why. Send the message again",
        )

    def stalled(self, what: str) -> BackchannelError:
        """Nothing came in time."""
        return self._of(
            Reason.UPSTREAM_STALLED,
            f"{what}; where that is no fault, raise the limit in {self._section}",
        )

    def sick(self) -> BackchannelError:
        """It says so itself."""
        return self._of(Reason.ENGINE_UNAVAILABLE, "says that it cannot work; its own log says why")

    def busy(self, queued: int) -> BackchannelError:
        """Too many wait in it already."""
        return BackchannelError(
            Reason.ENGINE_BUSY,
            f"{queued} requests wait in the server behind the engine {self.engine}; send the "
            "message again later",
        )

    @property
    def _section(self) -> str:
        return f"[engine_options.{self.engine}]"

    def _of(self, reason: Reason, what: str) -> BackchannelError:
        return BackchannelError(reason, f"the server behind the engine {self.engine} {what}")

    def _key(self, code: str) -> str:
        if not self.key_source:
            return (
                f"wants a key ({code}), and none is configured; name it by api_key_env or "
                f"api_key_file in {self._section}"
            )
        return (
            f"does not accept its key ({code}); put a valid one where {self.key_source} in "
            f"{self._section} says, and restart"
        )


def _words(details: str, prompt: Prompt | None) -> str:
    """A server's message on one line, unless it may quote what was asked."""
    line = " ".join(details.split())
    line = "".join(character for character in line if character.isprintable())[:_SHOWN]
    if prompt is None:
        return line
    pieces = {line[at : at + _QUOTE].casefold() for at in range(len(line) - _QUOTE + 1)}
    for text in _texts(prompt):
        folded = " ".join(text.split()).casefold()
        if any(piece in folded for piece in pieces):
            return ""
        if 3 < len(folded) <= _QUOTE and folded in line.casefold():
            return ""
    return line


def _texts(prompt: Prompt) -> Iterator[str]:
    yield prompt.system
    yield prompt.continue_text
    for message in prompt.messages:
        yield from (part.text for part in message.parts)
        yield from (call.arguments_json for call in message.tool_calls)
