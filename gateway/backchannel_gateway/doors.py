"""`BrowserService`: what Envoy turns into HTTP. Each HttpBody passes through as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any, Final, TypeAlias

import grpc
from google.api.httpbody_pb2 import HttpBody

from backchannel.errors import BackchannelError, Reason
from backchannel.host.host import Host
from backchannel.host.live import LiveSession
from backchannel.host.reader import Reader
from backchannel.host.sessions import Sessions
from backchannel.v1 import browser_service_pb2 as pb
from backchannel.v1 import browser_service_pb2_grpc, frame_pb2
from backchannel_gateway import sse
from backchannel_gateway.assets import Asset, Assets

SERVICE: Final = pb.DESCRIPTOR.services_by_name["BrowserService"].full_name

# Rendered events that are kept for other readers, of all sessions together.
RENDERED_BYTES: Final = 16 * 1024 * 1024

# An answer with an HttpBody is a 200 unless this says otherwise; the edge turns it into the status.
STATUS_HEADER: Final = "x-backchannel-http-status"

STREAM_HEADERS: Final = (
    # The word of nginx and of those who learnt it from there: pass this on byte for byte.
    ("x-accel-buffering", "no"),
    ("cache-control", "no-store"),
)

_UINT64_MAX: Final = 2**64 - 1

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def register(server: grpc.aio.Server, host: Host) -> None:
    """Add the doors to a server that has not started."""
    browser = Browser(host.sessions, Assets.load())
    browser_service_pb2_grpc.add_BrowserServiceServicer_to_server(browser, server)


class Browser(browser_service_pb2_grpc.BrowserServiceServicer):
    """The service.

    Args:
        sessions: Whose events it tells.
        assets: The page.
    """

    def __init__(self, sessions: Sessions, assets: Assets) -> None:
        self._sessions = sessions
        self._assets = assets
        self._rendered = sse.Rendered(RENDERED_BYTES)

    async def StreamEvents(  # noqa: N802 - the contract's name
        self, request: pb.StreamEventsRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        """A session as server-sent events, from a cursor on, for as long as it lives.

        An `EventSource` gives up for good at any answer but 200. So what may be better in a moment
        is told as an event, and only what never will be as a status.

        Raises:
            BackchannelError: Before the stream has begun: `SESSION_NOT_FOUND`, `CURSOR_TRIMMED`,
                `CURSOR_BEYOND_END`, `FIELD_INVALID`.
        """
        cursor = _last_event_id(context)
        try:
            live = await self._session(request.session_id)
            reader = _attach(live, request, cursor)
        except BackchannelError as error:
            if error.retry_after_s is None:
                raise
            await context.send_initial_metadata(STREAM_HEADERS)
            delay_ms = max(sse.RETRY_MS, round(error.retry_after_s * 1000))
            yield _body(sse.retry(delay_ms) + sse.error(error.to_status()))
            return
        with closing(reader):
            await context.send_initial_metadata(STREAM_HEADERS)
            yield _body(sse.retry())
            try:
                async for frame in reader:
                    yield HttpBody(data=self._render(frame))
            except BackchannelError as error:
                yield HttpBody(data=sse.error(error.to_status()))
            except Exception:
                bug = BackchannelError(
                    Reason.INTERNAL, "the server met a bug of its own; connect again to go on"
                )
                yield HttpBody(data=sse.error(bug.to_status()))
                raise

    async def GetAsset(  # noqa: N802 - the contract's name
        self, request: pb.GetAssetRequest, context: Context
    ) -> HttpBody:
        """The chat page or one of its files.

        Raises:
            BackchannelError: `ASSET_NOT_FOUND`.
        """
        asset = self._assets[request.path]
        metadata = _metadata(context)
        if asset.etag in metadata.get("if-none-match", ""):
            await context.send_initial_metadata((*asset.headers, (STATUS_HEADER, "304")))
            return HttpBody(content_type=asset.content_type)
        return await _whole(asset, metadata.get("accept-encoding", ""), context)

    async def _session(self, session_id: str) -> LiveSession:
        if not session_id:
            raise BackchannelError(
                Reason.FIELD_REQUIRED, "name the session, as it was created", field="session_id"
            )
        return await self._sessions.get(session_id)

    def _render(self, frame: bytes) -> bytes:
        """A serialised `ServerFrame` as server-sent events."""
        events = list(map(self._rendered, sse.events_of(frame)))
        if not events:
            return sse.control(frame_pb2.ServerFrame.FromString(frame))
        return events[0] if len(events) == 1 else b"".join(events)


def _attach(live: LiveSession, request: pb.StreamEventsRequest, cursor: int | None) -> Reader:
    """A reader from where the browser stands.

    A browser that comes back asks by the same URL as the first time, so also for the snapshot that
    began it; what it wants then is to go on. Only when it cannot it gets the snapshot again.
    """
    lag = request.max_lag_events
    if cursor is None:
        return live.attach(request.after_seq, snapshot=request.snapshot, max_lag_events=lag)
    try:
        return live.attach(cursor, snapshot=False, max_lag_events=lag)
    except BackchannelError as error:
        lost = error.reason in (Reason.CURSOR_TRIMMED, Reason.CURSOR_BEYOND_END)
        if not (request.snapshot and lost):
            raise
    return live.attach(0, snapshot=True, max_lag_events=lag)


async def _whole(asset: Asset, accepted: str, context: Context) -> HttpBody:
    """An asset with its content, compressed if the browser takes that."""
    if asset.compressed is None or "gzip" not in accepted:
        await context.send_initial_metadata(asset.headers)
        return HttpBody(content_type=asset.content_type, data=asset.data)
    await context.send_initial_metadata((*asset.headers, ("content-encoding", "gzip")))
    return HttpBody(content_type=asset.content_type, data=asset.compressed)


def _body(data: bytes) -> HttpBody:
    """The first message of a stream, which says what it is."""
    return HttpBody(content_type=sse.CONTENT_TYPE, data=data)


def _last_event_id(context: Context) -> int | None:
    """The cursor that a browser which comes back says in a header.

    Raises:
        BackchannelError: `FIELD_INVALID`.
    """
    text = _metadata(context).get("last-event-id", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _UINT64_MAX):
        raise BackchannelError(
            Reason.FIELD_INVALID, "must be the id of an event, a number", field="Last-Event-ID"
        )
    return int(text)


def _metadata(context: Context) -> dict[str, str]:
    return {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
