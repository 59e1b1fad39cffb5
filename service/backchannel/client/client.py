"""The client: a connection to a server, and what one can ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc

from backchannel.client.channel import open_channel
from backchannel.client.config import ClientConfig
from backchannel.client.connection import ConnectionChange
from backchannel.client.conversation import Conversation
from backchannel.client.errors import (
    ClosedError,
    DisconnectedError,
    SessionGoneError,
    call_error,
)
from backchannel.client.outbox import new_id
from backchannel.client.schedule import Backoff, LoopTime, Time
from backchannel.client.shape import AnswerShape, response_format_of
from backchannel.client.stream import Stream
from backchannel.client.tools import Tool
from backchannel.client.tracing import Tracing
from backchannel.v1.conversation_service_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    Fork,
    GetSessionRequest,
    ListSessionsRequest,
)
from backchannel.v1.conversation_service_pb2_grpc import ConversationServiceStub
from backchannel.v1.frame_pb2 import Open, Resume, Snapshot
from backchannel.v1.model_service_pb2 import ListModelsRequest, Model
from backchannel.v1.model_service_pb2_grpc import ModelServiceStub
from backchannel.v1.session_pb2 import (
    ContextPolicy,
    DisconnectPolicy,
    Limits,
    Message,
    Sampling,
    Session,
    SessionConfig,
)

if TYPE_CHECKING:
    from backchannel.v1.conversation_service_pb2_grpc import ConversationServiceAsyncStub
    from backchannel.v1.model_service_pb2_grpc import ModelServiceAsyncStub

Answered = TypeVar("Answered")

DEFAULT_TARGET: Final = "127.0.0.1:50051"
_DEFAULTS: Final = ClientConfig()


class Client:
    """A Backchannel server, as seen from here. Use it with `async with`.

    Calls are repeated by themselves while the server can't be reached, for
    `ClientConfig.connect_timeout_s`.

    Args:
        target: `host:port`, or any other target that gRPC understands.
        config: Times and limits.
        credentials: For TLS. None: a plain connection.
        tracing: Makes spans of the calls: a `backchannel.telemetry.outgoing.ClientTracing`.
        time: The clock.
        backoff: Makes schedules for trying again.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        config: ClientConfig = _DEFAULTS,
        credentials: grpc.ChannelCredentials | None = None,
        tracing: Tracing | None = None,
        time: Time | None = None,
        backoff: Callable[[], Backoff] | None = None,
    ) -> None:
        self.target = target
        self._config = config
        self._credentials = credentials
        self._tracing = tracing
        clock = self._time = time or LoopTime()
        self._backoff = backoff or (lambda: Backoff(config, clock))

    async def __aenter__(self) -> Self:
        interceptors = self._tracing.interceptors if self._tracing is not None else ()
        self._channel = open_channel(self.target, self._config, self._credentials, interceptors)
        self._conversations: ConversationServiceAsyncStub = ConversationServiceStub(self._channel)
        self._models: ModelServiceAsyncStub = ModelServiceStub(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()

    # --- conversations ------------------------------------------------------------------------

    def converse(
        self,
        *,
        model: str = "",
        system: str = "",
        tools: Sequence[Tool] = (),
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        on_disconnect: DisconnectPolicy | None = None,
        history: Sequence[Message] = (),
        labels: Mapping[str, str] | None = None,
        engine_options: Mapping[str, str] | None = None,
        response_format: AnswerShape | None = None,
        context_policy: ContextPolicy.ValueType = ContextPolicy.CONTEXT_POLICY_UNSPECIFIED,
        session_id: str | None = None,
        snapshot_if_trimmed: bool = False,
        on_connection: Callable[[ConnectionChange], None] | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
    ) -> Conversation:
        """A new session, to be entered with `async with`.

        Args:
            model: `engine/name`, as `models` lists them. Default: the server's.
            system: The system prompt.
            tools: What the model may call; they run here.
            sampling: For every turn.
            limits: Bounds on what the session may use.
            on_disconnect: What happens to a running turn when nobody reads any more.
            history: A conversation that took place elsewhere, to go on from.
            labels: Free, for the caller.
            engine_options: Settings that each engine documents.
            response_format: The shape every answer must have: a pydantic model, a JSON schema as a
                dictionary, or the contract's message. Read answers with `Reply.parse`.
            context_policy: What to do when the conversation outgrows the model.
            session_id: 16 to 64 characters of `A-Za-z0-9_-`, a secret. The same id with the same
                settings is the same session. Default: a new one.
            snapshot_if_trimmed: After a connection so long lost that the events since are no longer
                kept, go on from a Snapshot instead of raising `CursorTrimmedError`.
            on_connection: Told when the connection is lost and when it is back.
            on_snapshot: Told, in its place among the events, when a Snapshot replaces what was
                known.
        """
        config = SessionConfig(
            session_id=session_id or new_id(),
            model=model,
            system=system,
            tools=[tool.spec for tool in tools],
            sampling=sampling,
            limits=limits,
            on_disconnect=on_disconnect,
            history=history,
            labels=labels,
            engine_options=engine_options,
            response_format=response_format_of(response_format),
            context_policy=context_policy,
        )
        return self._conversation(
            Open(create=config), tools, snapshot_if_trimmed, on_connection, on_snapshot
        )

    def resume(
        self,
        session_id: str,
        *,
        after_seq: int = 0,
        snapshot: bool = False,
        max_lag_events: int = 0,
        tools: Sequence[Tool] = (),
        snapshot_if_trimmed: bool = False,
        on_connection: Callable[[ConnectionChange], None] | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
    ) -> Conversation:
        """Go on with a session, in this process or another one, here or elsewhere.

        Calls that are open and whose tool is among `tools` are run.

        Args:
            session_id: Which session.
            after_seq: The last event handled (`Conversation.seq`). 0: from the beginning.
            snapshot: Begin with the session as it stands (`Conversation.snapshot`) instead.
            max_lag_events: Most events that this reader may be behind. Further behind, a Snapshot
                takes the place of those it has missed (`on_snapshot`). Default: any number; the
                events wait.
            tools: What runs here, of what the session declares.
            snapshot_if_trimmed: As in `converse`.
            on_connection: As in `converse`.
            on_snapshot: As in `converse`.
        """
        resume = Resume(
            session_id=session_id,
            after_seq=after_seq,
            snapshot=snapshot,
            max_lag_events=max_lag_events,
        )
        return self._conversation(
            Open(resume=resume), tools, snapshot_if_trimmed, on_connection, on_snapshot
        )

    # --- single calls -------------------------------------------------------------------------

    async def models(self) -> list[Model]:
        """What can be talked to, the default first."""
        request = ListModelsRequest()
        found = await self._call(
            lambda timeout_s: self._models.ListModels(request, timeout=timeout_s)
        )
        return list(found.models)

    async def create(self, config: SessionConfig | None = None) -> Session:
        """Create a session without opening a stream.

        Raises:
            StatusError: The configuration is refused.
        """
        return await self._create(config, None)

    async def fork(
        self, session_id: str, at_seq: int, config: SessionConfig | None = None
    ) -> Session:
        """A new session with the past of another: to edit and retry, or to ask what if.

        The two have nothing in common afterwards; `resume` the new one. To say a message anew, fork
        at the seq of the event before its InputAccepted (`Receipt.seq` - 1).

        Args:
            session_id: The other one. It goes on as if nothing had happened.
            at_seq: The new session knows what had happened up to here, this event included.
            config: What is to be different; what is absent is as in the other one.

        Raises:
            SessionGoneError: There is no such session.
            CursorTrimmedError: That part of its past is no longer kept.
            StatusError: The configuration is refused.
        """
        return await self._create(config, Fork(session_id=session_id, at_seq=at_seq))

    async def session(self, session_id: str) -> Session:
        """A session as it stands.

        Raises:
            SessionGoneError: There is none.
        """
        request = GetSessionRequest(session_id=session_id)
        found = await self._call(
            lambda timeout_s: self._conversations.GetSession(request, timeout=timeout_s)
        )
        return found.session

    async def sessions(self, *, filter: str = "") -> AsyncIterator[Session]:  # noqa: A002 (the contract's name)
        """The caller's sessions, newest first.

        Args:
            filter: `labels.KEY = "VALUE"`, several joined by `AND`.

        Raises:
            StatusError: PERMISSION_DENIED from another machine than the server's own.
        """
        request = ListSessionsRequest(filter=filter)
        while True:
            page = await self._call(
                lambda timeout_s: self._conversations.ListSessions(request, timeout=timeout_s)
            )
            for session in page.sessions:
                yield session
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def snapshot(self, session_id: str) -> Snapshot:
        """A session with all its turns as they stand.

        Raises:
            SessionGoneError: There is none.
        """
        async with self.resume(session_id, snapshot=True) as conversation:
            if conversation.snapshot is None:
                raise ClosedError("the session was closed before its snapshot had come")
            return conversation.snapshot

    async def delete(self, session_id: str) -> None:
        """End a session and delete its log.

        Raises:
            SessionGoneError: There is none.
        """
        request = DeleteSessionRequest(session_id=session_id)
        attempts = 0

        async def call(timeout_s: float) -> None:
            nonlocal attempts
            attempts += 1
            await self._conversations.DeleteSession(request, timeout=timeout_s)

        try:
            await self._call(call)
        except SessionGoneError:
            # Gone at the second attempt: the first had worked, only its answer was lost.
            if attempts == 1:
                raise

    # --- inside -------------------------------------------------------------------------------

    def _conversation(
        self,
        opening: Open,
        tools: Sequence[Tool],
        snapshot_if_trimmed: bool,
        on_connection: Callable[[ConnectionChange], None] | None,
        on_snapshot: Callable[[Snapshot], None] | None,
    ) -> Conversation:
        def stream() -> Stream:
            return Stream(
                self._conversations,
                self._config,
                opening,
                snapshot_if_trimmed=snapshot_if_trimmed,
                tools=tools,
                on_connection=on_connection,
                tracing=self._tracing,
                time=self._time,
                backoff=self._backoff,
            )

        start = opening.create if opening.HasField("create") else opening.resume
        return Conversation(
            stream,
            self._config,
            session_id=start.session_id,
            snapshot=opening.resume.snapshot,
            after_seq=opening.resume.after_seq,
            on_snapshot=on_snapshot,
        )

    async def _create(self, config: SessionConfig | None, fork: Fork | None) -> Session:
        wanted = SessionConfig()
        if config is not None:
            wanted.CopyFrom(config)
        if not wanted.session_id:
            # So that a repeat after a lost answer makes no second session.
            wanted.session_id = new_id()
        request = CreateSessionRequest(config=wanted, fork=fork)
        made = await self._call(
            lambda timeout_s: self._conversations.CreateSession(request, timeout=timeout_s)
        )
        return made.session

    async def _call(self, call: Callable[[float], Awaitable[Answered]]) -> Answered:
        """Make a unary call, again and again while it may work later.

        Raises:
            DisconnectedError: Nobody answered for too long.
            StatusError: The server refused.
        """
        backoff = self._backoff()
        while True:
            try:
                return await call(self._config.call_timeout_s)
            except grpc.aio.AioRpcError as failed:
                error = call_error(failed)
            if not error.transient:
                raise error
            delay_s = backoff.next_s(self._config.connect_timeout_s, error.retry_after_s)
            if delay_s is None:
                if error.reason:
                    raise error
                raise DisconnectedError(f"no connection to {self.target}: {error}") from error
            await self._time.sleep(delay_s)
