"""What goes wrong with an upstream, each in words that say who has to mend what.

A message goes to clients: it names the engine and its settings, never the upstream's address, its
key, or anything of the conversation. What the upstream says itself is passed on only of a request
that it refused, and only if nothing of the conversation is in it: servers like to quote.
"""

from __future__ import annotations

import email.utils
import json
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import openai

from backchannel.engines.protocol import Prompt
from backchannel.errors import BackchannelError, Reason

_SHOWN: Final = 300
"""How much of an upstream's words is passed on."""
_QUOTE: Final = 12
"""So many characters in a row, of the conversation's, are a quotation."""

_CONTEXT: Final = re.compile(
    r"context (?:length|size|window)[^0-9]{0,24}?(\d{2,9})|n_ctx[^0-9]{0,9}(\d{2,9})", re.I
)
_PROMPT: Final = re.compile(
    r"(\d+) tokens (?:in|from) the (?:input )?messages|resulted in (\d+) tokens"
    r"|has (?:at least )?(\d+) input tokens|\((\d+) tokens\)"
    r"|prompt (?:has|contains) (?:at least )?(\d+)"
    r"|requested (?:about )?(\d+) tokens",
    re.I,
)


class UpstreamResponse(openai.OpenAIError):
    """An answer that is none: any status but 200.

    Raised where the client looks at a response first, and so passed on by the SDK as it is.

    Args:
        status: Of HTTP.
        headers: By their names in lower case.
        body: Its beginning.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"the upstream answers {status}")
        self.status = status
        self.headers = headers
        self.body = body


class UpstreamError(BackchannelError):
    """An upstream's failure.

    Args:
        reason: Which kind.
        message: For clients.
        detail: For the log of whoever runs the server.
        again: Whether the same request may succeed when it is sent again.
        wait_s: The pause that the upstream asks for; None if it says nothing.
        metadata: As for every error.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        detail: str = "",
        again: bool = False,
        wait_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after_s=wait_s)
        self.detail = detail
        self.again = again
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Blame:
    """Makes errors about one engine's upstream.

    Attributes:
        engine: Its name.
        key_source: What its key came from: the setting's name; empty for no key.
    """

    engine: str
    key_source: str

    @property
    def section(self) -> str:
        """Where its settings are."""
        return f"[engine_options.{self.engine}]"

    def of_exception(self, error: Exception) -> UpstreamError:
        """Why no answer began."""
        if isinstance(error, UpstreamError):
            return error
        causes = list(_chain(error))
        if isinstance(error, openai.APITimeoutError):
            if any("Connect" in type(cause).__name__ for cause in causes):
                return self.stalled("could not be connected to within connect_timeout_s")
            return self.stalled("took no request within first_token_timeout_s")
        detail = ", ".join(type(cause).__name__ for cause in causes)
        if any(isinstance(cause, ssl.SSLError) for cause in causes) or "CERTIFICATE" in repr(
            causes
        ):
            return UpstreamError(
                Reason.UPSTREAM_UNREACHABLE,
                f"the server behind the engine {self.engine} speaks no TLS that is trusted here; "
                f"does base_url in {self.section} begin with the right one of http:// and "
                "https://, and does SSL_CERT_FILE name its authority?",
                detail=detail,
            )
        if any("Connect" in type(cause).__name__ for cause in causes):
            what = "refused the connection or cannot be reached; is it running"
            if any(isinstance(cause, socket.gaierror) for cause in causes) or any(
                word in str(cause) for cause in causes for word in _NO_NAME
            ):
                what = "has a host name that nobody knows; is it spelled right"
            return UpstreamError(
                Reason.UPSTREAM_UNREACHABLE,
                f"the server behind the engine {self.engine} {what}, and is base_url in "
                f"{self.section} its address?",
                detail=detail,
                again=True,
            )
        return self.broke_off("before it answered", detail=detail)

    def of_response(self, response: UpstreamResponse, prompt: Prompt | None) -> BackchannelError:
        """Why an answer is none; what was asked must not come back in it."""
        status = response.status
        said = _said(response)
        wait_s = _retry_after_s(response.headers)
        detail = f"HTTP {status}"
        who = f"the server behind the engine {self.engine}"
        if status in (401, 403):
            return UpstreamError(Reason.UPSTREAM_UNAUTHORIZED, self._key(status), detail=detail)
        if status == 429:
            if said.code == "insufficient_quota":
                return UpstreamError(
                    Reason.UPSTREAM_RATE_LIMITED,
                    f"{who} says that its key has no quota left (429); whoever runs this server "
                    "has to see to the account, or name another key",
                    detail=detail,
                )
            return UpstreamError(
                Reason.UPSTREAM_RATE_LIMITED,
                f"{who} is asked too often (429); send the message again later",
                detail=detail,
                again=True,
                wait_s=wait_s,
            )
        if status >= 500 or status in (408, 409, 425):
            return UpstreamError(
                Reason.UPSTREAM_FAILED,
                f"{who} failed ({status}); its own log says why. Send the message again",
                detail=detail,
                again=True,
                wait_s=wait_s,
            )
        if 300 <= status < 400:
            return UpstreamError(
                Reason.UPSTREAM_NOT_AN_API,
                f"{who} redirects to another address ({status}), which is not followed; give "
                f"base_url in {self.section} the final one, https:// included",
                detail=f"{detail} to {_origin(response.headers.get('location', ''))}",
            )
        if status in (404, 405, 410):
            if prompt is not None and "model" in said.message.lower():
                return BackchannelError(
                    Reason.MODEL_NOT_FOUND,
                    f"{who} has no model {prompt.model[:128]} now; ListModels shows what it has",
                    field="model",
                )
            return UpstreamError(
                Reason.UPSTREAM_NOT_AN_API,
                f"{who} has nothing at that path ({status}); is base_url in {self.section} right? "
                "It usually ends in /v1",
                detail=detail,
            )
        if status < 300:
            if prompt is not None and said.something:
                return self._gave_up(said, prompt)
            return self.not_an_api("JSON" if response.body else f"status {status}")
        return self._refusal(status, said, prompt)

    def of_answer(self, error: object, prompt: Prompt) -> BackchannelError:
        """Why an upstream gave up an answer that it had begun."""
        return self._gave_up(_Said.of(error), prompt)

    def _gave_up(self, said: _Said, prompt: Prompt) -> BackchannelError:
        if too_long := self._too_long(said):
            return too_long
        if said.code in ("rate_limit_exceeded", "429"):
            return UpstreamError(
                Reason.UPSTREAM_RATE_LIMITED,
                f"the server behind the engine {self.engine} is asked too often; send the message "
                "again later",
                again=True,
            )
        if said.code.startswith("4") or said.kind in ("invalid_request_error", "BadRequestError"):
            return self._refusal(400, said, prompt)
        return UpstreamError(
            Reason.UPSTREAM_FAILED,
            f"the server behind the engine {self.engine} gave its answer up; its own log says "
            "why. Send the message again",
            detail=f"error in the stream {said.kind} {said.code}".strip(),
            again=True,
        )

    def broke_off(self, when: str, *, detail: str = "") -> UpstreamError:
        """The connection ended and the answer had not."""
        return UpstreamError(
            Reason.UPSTREAM_BROKE_OFF,
            f"the server behind the engine {self.engine} closed the connection {when}; send the "
            "message again",
            detail=detail,
            again=True,
        )

    def stalled(self, what: str) -> UpstreamError:
        """Nothing came in time."""
        return UpstreamError(
            Reason.UPSTREAM_STALLED,
            f"the server behind the engine {self.engine} {what}; where that is no fault, raise "
            f"the limit in {self.section}",
        )

    def unreadable(self, what: str) -> UpstreamError:
        """Something came that cannot be read."""
        return UpstreamError(
            Reason.UPSTREAM_UNREADABLE,
            f"the server behind the engine {self.engine} sent what cannot be read: {what}",
        )

    def not_an_api(self, what: str) -> UpstreamError:
        """Something else than a stream of events came."""
        return UpstreamError(
            Reason.UPSTREAM_NOT_AN_API,
            f"the server behind the engine {self.engine} answers with {what} where a stream of "
            f"events is due; is base_url in {self.section} that of an OpenAI-compatible API? It "
            "usually ends in /v1",
        )

    def _key(self, status: int) -> str:
        if not self.key_source:
            return (
                f"the server behind the engine {self.engine} wants a key ({status}), and none is "
                f"configured; name it by api_key_env or api_key_file in {self.section}"
            )
        return (
            f"the server behind the engine {self.engine} does not accept its key ({status}); put "
            f"a valid one where {self.key_source} in {self.section} says, and restart"
        )

    def _refusal(self, status: int, said: _Said, prompt: Prompt | None) -> BackchannelError:
        if too_long := self._too_long(said):
            return too_long
        words = said.words(prompt)
        return UpstreamError(
            Reason.UPSTREAM_REFUSED,
            f"the server behind the engine {self.engine} refuses the request ({status})"
            + (f": {words}" if words else "; its own log says why"),
            detail=f"HTTP {status} {said.kind} {said.code}".strip(),
        )

    def _too_long(self, said: _Said) -> BackchannelError | None:
        message = said.message
        if said.kind != "exceed_context_size_error" and said.code != "context_length_exceeded":
            lower = message.lower()
            if "context" not in lower or "token" not in lower:
                return None
        context = str(said.more.get("n_ctx") or _first(_CONTEXT, message))
        length = str(said.more.get("n_prompt_tokens") or _first(_PROMPT, message))
        has = f"has {length} tokens" if length else "is too long"
        holds = f"holds {context}" if context else "is smaller"
        return BackchannelError(
            Reason.PROMPT_TOO_LONG,
            f"the conversation {has}, and the model's context {holds}, the answer included; begin "
            "a new session, say less, or ask for fewer tokens",
            metadata={"prompt_tokens": length or "?", "max_context_tokens": context or "?"},
        )


_NO_NAME: Final = (
    "Name or service not known",
    "nodename nor servname",
    "Temporary failure in name",
)


@dataclass(frozen=True, slots=True)
class _Said:
    """What an upstream says of an error."""

    message: str
    kind: str
    code: str
    more: Mapping[str, Any]

    @classmethod
    def of(cls, error: object) -> _Said:
        if isinstance(error, str):
            return cls(error, "", "", {})
        if not isinstance(error, dict):
            return cls("", "", "", {})
        more = {
            key: value
            for key in ("n_ctx", "n_prompt_tokens")
            if isinstance(value := error.get(key), int) and not isinstance(value, bool)
        }
        message = error.get("message") or ""
        return cls(
            message if isinstance(message, str) else "",
            _name(error.get("type")),
            _name(error.get("code")),
            more,
        )

    @property
    def something(self) -> bool:
        """Whether it says anything."""
        return bool(self.message or self.kind or self.code)

    def words(self, prompt: Prompt | None) -> str:
        """Its message on one line, unless it quotes what was asked."""
        line = " ".join(self.message.split())
        line = "".join(character for character in line if character.isprintable())[:_SHOWN]
        if prompt is None or _quotes(line, prompt):
            return " ".join(filter(None, (self.kind, self.code)))
        return line


def _said(response: UpstreamResponse) -> _Said:
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        return _Said("", "", "", {})
    if not isinstance(body, dict):
        return _Said("", "", "", {})
    # FastAPI says `detail`; a few say `message` without an object around it.
    return _Said.of(body.get("error") or body.get("detail") or body)


def _name(value: object) -> str:
    """A word of an upstream's for programs, if it is one."""
    # Letters and digits together may be a key.
    text = str(value) if isinstance(value, str | int) else ""
    return text if re.fullmatch(r"[A-Za-z_.-]{1,64}|[0-9]{1,6}", text) else ""


def _quotes(line: str, prompt: Prompt) -> bool:
    """Whether a line has a piece of the conversation in it."""
    folded = line.casefold()
    for text in _texts(prompt):
        text = " ".join(text.split()).casefold()
        if 3 < len(text) <= _QUOTE and text in folded:
            return True
        if len(text) > _QUOTE and any(
            folded[at : at + _QUOTE] in text for at in range(len(folded) - _QUOTE + 1)
        ):
            return True
    return False


def _texts(prompt: Prompt) -> Iterator[str]:
    """Everything that people, models and tools have said."""
    yield prompt.system
    yield prompt.continue_text
    for message in prompt.messages:
        yield from (part.text for part in message.parts)
        yield from (call.arguments_json for call in message.tool_calls)


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    for _ in range(16):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return next(filter(None, found.groups()), "") if found else ""


def _origin(location: str) -> str:
    """A redirect's target, without what may be secret in it."""
    # A name and a password would stand before an @.
    found = re.match(r"https?://[A-Za-z0-9.:\[\]-]{1,255}(?=[/?#]|$)", location)
    return found[0] if found else "a path of its own"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The pause that is asked for: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3)."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            text = headers.get("retry-after", "")
            if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", text):
                seconds = float(text)
            else:  # By the upstream's own clock.
                until = email.utils.parsedate_to_datetime(text)
                seconds = (
                    until - email.utils.parsedate_to_datetime(headers.get("date", ""))
                ).total_seconds()
    except (TypeError, ValueError):
        return None
    # Written so that NaN is none.
    return min(seconds, 86_400.0) if seconds >= 0.0 else None
