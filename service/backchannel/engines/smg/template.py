"""A model's chat template: Jinja that makes one text of a conversation.

It comes with the model and may be anybody's, so it runs in Jinja's sandbox, which reaches neither
files nor Python's insides. It is given what templates expect of Hugging Face's `transformers`:
`raise_exception`, `strftime_now`, `tojson`, `{% generation %}`, `{% break %}`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backchannel.engines.chat import messages, tools
from backchannel.engines.protocol import Prompt
from backchannel.engines.smg.files import BadFilesError, TokenizerFiles

_MOST_CHARS: Final = 2**20
_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


class RefusedConversationError(Exception):
    """The template does not take this conversation; the message is the template's."""


class ChatTemplate:
    """One model's template.

    Args:
        source: The template.
        variables: What it is given in any case, such as `bos_token`.
        now: For `strftime_now`.

    Raises:
        BadFilesError: It is no template.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        *,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        if len(source) > _MOST_CHARS:
            raise BadFilesError("the chat template is too long")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
            undeclared = meta.find_undeclared_variables(environment.parse(source))
        except (TemplateError, RecursionError) as error:
            raise BadFilesError(f"the chat template cannot be read ({error})") from error
        self.source = source
        self.takes_tools = "tools" in undeclared
        self._variables = dict(variables)

    @classmethod
    def of_files(
        cls, files: TokenizerFiles, options: Mapping[str, Any], source: str | None = None
    ) -> ChatTemplate:
        """Find a model's template among its files.

        Args:
            files: The files.
            options: Further variables.
            source: A template in place of the model's.

        Raises:
            BadFilesError: There is none.
        """
        config = files.json("tokenizer_config.json")
        for found in (
            source,
            files.text("chat_template.jinja"),
            files.json("chat_template.json").get("chat_template"),
            config.get("chat_template"),
        ):
            if isinstance(found, list):  # Several, of which one may be for tools.
                named = {
                    entry["name"]: entry["template"] for entry in found if isinstance(entry, dict)
                }
                found = named.get("tool_use") or named.get("default")
            if isinstance(found, str) and found:
                special = {name: _content(config.get(name)) for name in _TOKENS}
                return cls(found, special | dict(options))
        raise BadFilesError(
            "the model has no chat template; it is a base model perhaps, else name a template "
            "by chat_template"
        )

    def render(self, prompt: Prompt, options: Mapping[str, Any]) -> str:
        """The text that the model goes on from, without `continue_text`.

        Args:
            prompt: What is asked.
            options: Variables of this conversation.

        Raises:
            RefusedConversationError: The template does not take it.
        """
        conversation = messages(replace(prompt, continue_text=""))
        for message in conversation:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = _object(function["arguments"])
        try:
            return self._template.render(
                self._variables
                | dict(options)
                | {
                    "messages": conversation,
                    "tools": tools(prompt) or None,
                    "documents": None,
                    "add_generation_prompt": True,
                }
            )
        # Anything may go wrong in a program of somebody else's.
        except Exception as error:  # noqa: BLE001
            words = str(error) if isinstance(error, _RaisedError) else type(error).__name__
            raise RefusedConversationError(words[:300]) from None


class _RaisedError(TemplateError):
    """By the template itself."""


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise _RaisedError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML, which models have never seen."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _content(token: object) -> str:
    """A token, which stands by itself or in an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _object(arguments: str) -> object:
    """A call's arguments as an object, which templates make JSON of; else as they are."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
