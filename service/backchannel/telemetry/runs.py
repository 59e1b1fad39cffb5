"""Questions to engines: the wait for a place, and the call itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from backchannel.engines.protocol import Chunk, Finished, StopCause
from backchannel.errors import BackchannelError
from backchannel.observer import OUTGOING
from backchannel.session.decision import StartEngine
from backchannel.telemetry import content, table
from backchannel.telemetry import conventions as names
from backchannel.telemetry.calls import PROPAGATOR

if TYPE_CHECKING:
    from backchannel.telemetry.figures import Spread
    from backchannel.telemetry.telemetry import Telemetry


class Run:
    """One question, with the wait and the call of each model that was asked.

    Args:
        telemetry: Where it is told.
        effect: What is asked.
        parent: The turn.
        session_id: Whose question it is.
    """

    def __init__(
        self, telemetry: Telemetry, effect: StartEngine, parent: Context, session_id: str
    ) -> None:
        self._telemetry = telemetry
        self._effect = effect
        self._parent = parent
        self._session_id = session_id
        self._engine = self._model = ""
        self._queue: Span | None = None
        self._chat: Span | None = None
        self._gaps: Spread | None = None
        self._last_ns = 0
        self._begun_ns = 0
        self._began = False
        self._stopped_ns = 0
        self._answer: content.Answer | None = None

    def queued(self, engine: str, model: str) -> None:
        """It waits for a place."""
        self._engine, self._model = engine, model
        self._queue = self._telemetry.tracer.start_span(
            f"queue {engine}",
            context=self._parent,
            attributes={names.PROVIDER_NAME: engine, names.REQUEST_MODEL: model},
        )

    def admitted(self) -> None:
        """The engine is asked next; what goes out in this task belongs to the call's span."""
        self._end_queue(None)
        telemetry, model = self._telemetry, self._model
        self._chat = chat = telemetry.tracer.start_span(
            f"{names.CHAT} {model}",
            context=self._parent,
            kind=SpanKind.CLIENT,
            attributes=self._asked(),
        )
        if telemetry.config.content:
            self._tell_prompt(chat)
            self._answer = content.Answer()
        self._gaps = telemetry.figures.spread(table.GAP).of(f"{self._engine}/{model}")
        self._begun_ns = time.perf_counter_ns()
        self._last_ns = 0
        self._began = False
        present = set_span_in_context(chat)
        otel_context.attach(present)  # For the run's own task, which ends with the run.
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, context=present)
        OUTGOING.set(carrier)

    def _asked(self) -> dict[str, str | int | float | bool]:
        sampling = self._effect.sampling
        asked: dict[str, str | int | float | bool] = {
            names.OPERATION_NAME: names.CHAT,
            names.PROVIDER_NAME: self._engine,
            names.REQUEST_MODEL: self._model,
            names.REQUEST_STREAM: True,
            names.CONVERSATION_ID: self._session_id,
        }
        for name, field in (
            (names.REQUEST_MAX_TOKENS, "max_tokens"),
            (names.REQUEST_TEMPERATURE, "temperature"),
            (names.REQUEST_TOP_P, "top_p"),
            (names.REQUEST_SEED, "seed"),
        ):
            if sampling.HasField(field):  # type: ignore[arg-type]  # one of four literals
                asked[name] = getattr(sampling, field)
        return asked

    def output(self, chunk: object) -> None:
        """A chunk came; every token's way."""
        if type(chunk) is Finished:
            return
        now_ns = time.perf_counter_ns()
        if self._last_ns:
            self._gaps.add((now_ns - self._last_ns) * 1e-9)  # type: ignore[union-attr]  # admitted
        elif not self._began:
            self._began = True
            self._first(now_ns)
        self._last_ns = now_ns
        if self._answer is not None:
            self._answer.add(cast(Chunk, chunk))

    def _first(self, now_ns: int) -> None:
        if self._chat is not None:
            self._chat.add_event("first_token")
            waited_s = (now_ns - self._begun_ns) / 1e9
            self._chat.set_attribute(names.RESPONSE_TIME_TO_FIRST_CHUNK, waited_s)

    def pause(self) -> None:
        """What is not taken is no gap."""
        self._last_ns = 0

    def stop(self) -> None:
        """The engine is told to stop."""
        self._stopped_ns = time.perf_counter_ns()
        if self._chat is not None:
            self._chat.add_event("stop")

    def failed(self, error: Exception, *, passed_over: bool = False) -> None:
        """The model failed."""
        chat, queue = self._chat, self._queue
        if not passed_over and chat is None and queue is None and self._model:
            return  # The last one's failure has been told.
        reason = error.reason.value if isinstance(error, BackchannelError) else "INTERNAL"
        engine = self._engine or self._effect.model.partition("/")[0]
        self._telemetry.figures.number(table.ENGINE_ERRORS).add(1, engine, reason)
        self._end_queue(reason)
        if chat is not None:
            chat.set_attribute(names.RESPONSE_FINISH_REASONS, ["error"])
            self._end_chat("failed", reason, None)
        self._let_go()

    def finished(self, finished: Finished) -> None:
        """The run ended."""
        self._end_queue("stopped" if self._stopped_ns else None)
        chat = self._chat
        if chat is not None:
            usage = finished.usage
            told: dict[str, int | list[str]] = {
                names.RESPONSE_FINISH_REASONS: [finished.cause.value],
                names.USAGE_INPUT_TOKENS: usage.prompt_tokens,
                names.USAGE_CACHE_READ: usage.cached_prompt_tokens,
            }
            if usage.output_tokens is not None:
                told[names.USAGE_OUTPUT_TOKENS] = usage.output_tokens
            chat.set_attributes(told)
            stopped = finished.cause is StopCause.STOPPED
            event = "stopped" if stopped else "finish"
            self._end_chat(event, "stopped" if stopped else None, finished.cause)
        self._let_go()

    def _let_go(self) -> None:
        if self._stopped_ns:
            took_s = (time.perf_counter_ns() - self._stopped_ns) / 1e9
            self._telemetry.figures.spread(table.STOP).add(took_s, self._engine)
            self._stopped_ns = 0

    def _end_queue(self, error: str | None) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            _end(queue, error)

    def _end_chat(self, event: str, error: str | None, cause: StopCause | None) -> None:
        chat, self._chat = self._chat, None
        if chat is None:
            return
        if self._answer is not None and (said := self._answer.told(cause)) is not None:
            chat.set_attribute(names.OUTPUT_MESSAGES, said)
        self._answer = None
        chat.add_event(event)
        _end(chat, error)

    def _tell_prompt(self, chat: Span) -> None:
        effect = self._effect
        if effect.system:
            chat.set_attribute(names.SYSTEM_INSTRUCTIONS, content.instructions(effect.system))
        chat.set_attribute(names.INPUT_MESSAGES, content.prompt(effect.messages))


def _end(span: Span, error: str | None) -> None:
    if error is not None:
        span.set_attribute(names.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, error))
    span.end()
