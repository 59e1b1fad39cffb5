"""Measuring through an HTTP URL: gRPC-Web and server-sent events, as browsers use them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import struct
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import httpx
from google.protobuf.timestamp_pb2 import Timestamp

from backchannel.listen import Address
from backchannel.probe import rest
from backchannel.probe.answers import SESSIONS, RefusedError, is_kind, json_of, said_in, server_of
from backchannel.probe.measured import (
    Arrival,
    Cancel,
    Measured,
    Refusal,
    Silence,
    Stream,
)
from backchannel.probe.plan import CANCEL_WAIT_S, PATIENCE_S, Plan, Tell, UnreachableError, leaves
from backchannel.probe.reach import Trust, agree_on_tls, knock, speaks
from backchannel.probe.wire import ServerSentEvents, WebFrames, WireError
from backchannel.v1 import probe_service_pb2

WEB: Final = "gRPC-Web"
SSE: Final = "SSE"

_PROBE: Final = "/backchannel.v1.ProbeService/Probe"
# gRPC's: what answers has no such method, at least not under this path.
_UNIMPLEMENTED: Final = str(grpc.StatusCode.UNIMPLEMENTED.value[0])
# To meet a large first piece at least once, when every other one is.
_TRIES: Final = 12


async def measure(url: str, *, trust: Trust, plan: Plan, tell: Tell) -> Measured:
    """Measure everything at once.

    Args:
        url: `http://…` or `https://…`; may have a path that the proxy takes away.
        trust: Whose certificates to believe.
        plan: How much.
        tell: Called as it goes on.

    Raises:
        UnreachableError: Nobody is there, or its certificate is not to be trusted.
        ValueError: It is no URL, or `trust` names no authority.
    """
    patience = httpx.Timeout(plan.deadline_s + plan.idle_s + PATIENCE_S, connect=PATIENCE_S)
    tls = url.startswith("https:")
    try:
        parsed = urllib.parse.urlsplit(url)
        address = Address(parsed.hostname or "", parsed.port or (443 if tls else 80))
    except ValueError as error:
        raise ValueError(f"{url} is no URL: {error}") from None
    if not address.host:
        raise ValueError(f"{url} is no URL: it names no host")
    context = trust.context()
    if tls:
        await agree_on_tls(address, context, "h2", "http/1.1")
    else:
        await knock(address)
    # As browsers have it: HTTP/2 over TLS alone, and a proxy may compress. A proxy of this
    # machine's own for its way out would be measured instead.
    browser = functools.partial(
        httpx.AsyncClient,
        base_url=url,
        verify=context,
        http2=tls,
        timeout=patience,
        trust_env=False,
    )
    async with browser() as client:
        await _greet(client, address, tls=tls)
        async with asyncio.TaskGroup() as group:
            web = group.create_task(_web_stream(client, plan, tell))
            sse = group.create_task(_sse_stream(client, plan, tell))
            web_silence = group.create_task(_web_silence(client, plan, tell))
            sse_silence = group.create_task(_sse_silence(client, plan, tell))
            cancel = group.create_task(_cancel(client, browser))
            calls = group.create_task(rest.calls(client))
            listing = group.create_task(rest.listing(client, address))
    left = cancel.result()
    return Measured(
        url=url,
        streams=[web.result(), sse.result()],
        silences=[found for task in (web_silence, sse_silence) if (found := task.result())],
        cancels=[left] if left else [],
        calls=[made] if (made := calls.result()) else [],
        listings=[told] if (told := listing.result()) else [],
    )


async def _greet(client: httpx.AsyncClient, address: Address, *, tls: bool) -> None:
    """See that HTTP is spoken. Whatever is answered, there is somebody to measure.

    Raises:
        UnreachableError: It is not.
    """
    try:
        response = await client.get("/", timeout=PATIENCE_S)
        # This is how some say that TLS is missing; others hang up.
        if tls or response.status_code != httpx.codes.BAD_REQUEST:
            return
        why = "answers 400"
    except (httpx.HTTPError, OSError) as error:
        why = f"does not answer as HTTP does: {str(error) or type(error).__name__}"
    spoken = "nothing known" if tls else await speaks(address)
    if spoken == "TLS":
        raise UnreachableError(f"{address} speaks TLS", "write https://")
    if spoken == "HTTP/2":
        raise UnreachableError(
            f"{address} speaks HTTP/2 and nothing else: it is a port of gRPC",
            f"write {address} to measure gRPC; browsers need Envoy in front"
            " (`pip install 'backchannel[edge]'`), whose URL `backchannel serve` prints",
        )
    if why != "answers 400":
        raise UnreachableError(f"{address} {why}", "see that it is the address of a web server")


# --- gRPC-Web ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _probe(
    client: httpx.AsyncClient, count: int, interval_s: float
) -> AsyncIterator[httpx.Response]:
    request = probe_service_pb2.ProbeRequest(count=count)
    request.interval.FromNanoseconds(round(interval_s * 1e9))
    raw = request.SerializeToString()
    kind = "application/grpc-web+proto"
    headers = {"content-type": kind, "accept": kind, "x-grpc-web": "1"}
    body = struct.pack(">BI", 0, len(raw)) + raw
    async with client.stream("POST", _PROBE, content=body, headers=headers) as response:
        if not is_kind(response, "application/grpc-web"):
            raise RefusedError(response)
        status = response.headers.get("grpc-status", "0")
        if status == _UNIMPLEMENTED:
            raise RefusedError(response, status=0)
        if status != "0":
            raise RefusedError(response, response.headers.get("grpc-message") or f"code {status}")
        yield response


async def _web_stream(client: httpx.AsyncClient, plan: Plan, tell: Tell) -> Stream:
    arrivals: list[Arrival] = []
    frames = WebFrames()
    answer: httpx.Response | None = None
    try:
        async with (
            asyncio.timeout(plan.deadline_s),
            _probe(client, plan.frames, plan.interval_s) as answer,
        ):
            async for chunk in answer.aiter_bytes():
                for raw in frames.feed(chunk):
                    sent = probe_service_pb2.ProbeResponse.FromString(raw).send_time
                    arrivals.append(Arrival(sent.ToNanoseconds() / 1e9, time.monotonic()))
                    tell(WEB, len(arrivals), plan.frames)
    except RefusedError as error:
        return _stream(WEB, error.response, refusal=error.refusal)
    except (httpx.HTTPError, WireError, TimeoutError):
        pass  # `whole` says so.
    if frames.status and not arrivals and answer is not None:
        refused = RefusedError(answer, frames.message or f"code {frames.status}")
        return _stream(WEB, answer, refusal=refused.refusal)
    return _stream(WEB, answer, arrivals=arrivals, whole=frames.status == 0)


async def _web_silence(client: httpx.AsyncClient, plan: Plan, tell: Tell) -> Silence | None:
    """Two frames with nothing between them."""
    if not plan.idle_s:
        return None
    frames = WebFrames()
    server = ""
    count = 0
    began_s = time.monotonic()
    try:
        async with (
            plan.watching(f"{WEB}, silent", tell),
            asyncio.timeout(plan.idle_s + PATIENCE_S),
            _probe(client, 2, plan.idle_s) as answer,
        ):
            server = server_of(answer)
            async for chunk in answer.aiter_bytes():
                count += len(frames.feed(chunk))
    except RefusedError as error:
        if error.refusal.status != httpx.codes.GATEWAY_TIMEOUT:
            return None  # The other stream has it.
        server = server_of(error.response)
    except (httpx.HTTPError, WireError, TimeoutError):
        pass
    cut_s = None if count == 2 else time.monotonic() - began_s
    return Silence(WEB, plan.idle_s, cut_s, server=server)


# --- server-sent events -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _session(client: httpx.AsyncClient, **config: Any) -> AsyncIterator[str]:
    """A session of the counting model, deleted at the end; its path."""
    given = {"model": "scripted/count", **config}
    response = await client.post(SESSIONS, json=given)
    found = json_of(response)
    if response.status_code != httpx.codes.OK or "session" not in found:
        raise RefusedError(response, said_in(response))
    path = f"{SESSIONS}/{found['session']['sessionId']}"
    try:
        yield path
    finally:
        with contextlib.suppress(httpx.HTTPError):
            await client.delete(path)


@contextlib.asynccontextmanager
async def _events(client: httpx.AsyncClient, path: str) -> AsyncIterator[httpx.Response]:
    headers = {"accept": "text/event-stream", "cache-control": "no-store"}
    async with client.stream("GET", f"{path}/events", headers=headers) as response:
        if not is_kind(response, "text/event-stream"):
            raise RefusedError(response)
        yield response


async def _say(client: httpx.AsyncClient, path: str) -> None:
    frame = {"frameId": "probe", "message": {"parts": [{"text": "go"}]}}
    response = await client.post(f"{path}/frames", json=frame)
    if response.status_code != httpx.codes.OK or "receipt" not in json_of(response):
        raise RefusedError(response, said_in(response))


async def _sse_stream(client: httpx.AsyncClient, plan: Plan, tell: Tell) -> Stream:
    options = {"rate": f"{1 / plan.interval_s:g}"}
    arrivals: list[Arrival] = []
    answer: httpx.Response | None = None
    whole = False
    try:
        async with _session(
            client, engineOptions=options, sampling={"maxTokens": plan.frames}
        ) as path:
            reading = _Reading(client, path, arrivals, tell, plan)
            # Of what it compresses.
            compressed = "content-encoding" in (await client.get(path)).headers
            task = asyncio.create_task(reading.run(_TRIES if compressed else 1))
            try:
                if compressed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PATIENCE_S):
                            await reading.opened.wait()
                await _say(client, path)
                await asyncio.wait([task], timeout=plan.deadline_s)
                if not task.done():
                    # What is held back comes when the session, and with it the stream, ends.
                    await client.delete(path)
                    await asyncio.wait([task], timeout=PATIENCE_S)
            finally:
                await _end(task)
                answer, whole = reading.answer, reading.whole
            if not task.cancelled():
                task.result()
    except RefusedError as error:
        return _stream(SSE, error.response, refusal=error.refusal)
    except (httpx.HTTPError, WireError, ValueError):
        pass  # `whole` says so.
    return _stream(SSE, answer, arrivals=arrivals, whole=whole)


class _Reading:
    """The reader of the measured events."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        path: str,
        arrivals: list[Arrival],
        tell: Tell,
        plan: Plan,
    ) -> None:
        self._client, self._path, self._arrivals = client, path, arrivals
        self._tell, self._plan = tell, plan
        self.answer: httpx.Response | None = None
        self.whole = False
        # Set when it reads, or has given up.
        self.opened = asyncio.Event()

    async def run(self, tries: int) -> None:
        """Read until the turn has ended.

        Caddy compresses a stream, and then holds it, only if its first piece is large. Which piece
        comes first is chance: so the stream is opened until it is compressed.

        Args:
            tries: How often to open it at most.
        """
        try:
            for left in reversed(range(tries)):
                async with _events(self._client, self._path) as self.answer:
                    if left and "content-encoding" not in self.answer.headers:
                        continue
                    self.opened.set()
                    await self._read(self.answer)
                    return
        finally:
            self.opened.set()

    async def _read(self, answer: httpx.Response) -> None:
        decoder = ServerSentEvents()
        async for chunk in answer.aiter_bytes():
            for name, data in decoder.feed(chunk):
                if name == "output_delta":
                    sent = Timestamp()
                    sent.FromJsonString(json.loads(data)["time"])
                    sent_s = sent.ToNanoseconds() / 1e9
                    self._arrivals.append(Arrival(sent_s, time.monotonic()))
                    self._tell(SSE, len(self._arrivals), self._plan.frames)
                elif name == "turn_finished":
                    self.whole = True
                    return


async def _sse_silence(client: httpx.AsyncClient, plan: Plan, tell: Tell) -> Silence | None:
    """A session in which nothing is said: heartbeats, and nothing else."""
    if not plan.idle_s:
        return None
    server = ""
    cut_s: float | None = None
    try:
        async with plan.watching(f"{SSE}, silent", tell), _session(client) as path:
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(plan.idle_s), _events(client, path) as answer:
                    server = server_of(answer)
                    async for _ in answer.aiter_bytes():
                        pass
                cut_s = time.monotonic() - began_s
            except TimeoutError:
                pass  # It lives.
            except RefusedError as error:
                if error.refusal.status != httpx.codes.GATEWAY_TIMEOUT:
                    return None
                server, cut_s = server_of(error.response), time.monotonic() - began_s
            except httpx.HTTPError:
                cut_s = time.monotonic() - began_s
    except (RefusedError, httpx.HTTPError):
        return None  # The other stream has it.
    return Silence(SSE, plan.idle_s, cut_s, server=server)


async def _cancel(
    client: httpx.AsyncClient, browser: Callable[[], httpx.AsyncClient]
) -> Cancel | None:
    """Leave an answer that stops when nobody reads it."""
    server = ""

    async def read(path: str) -> None:
        # A connection of its own, which ends with it: httpx does not reset a stream of HTTP/2.
        async with browser() as another, _events(another, path) as answer:
            async for _ in answer.aiter_bytes():
                pass

    try:
        async with _session(
            client,
            engineOptions={"rate": "10"},
            sampling={"maxTokens": 10_000},
            onDisconnect={"action": "ACTION_CANCEL_NOW"},
        ) as path:
            reading = asyncio.create_task(read(path))

            async def running() -> bool:
                nonlocal server
                response = await client.get(path)
                found = json_of(response)
                if response.status_code != httpx.codes.OK or "session" not in found:
                    raise RefusedError(response, said_in(response))
                server = server_of(response)
                return bool(found["session"].get("runningTurnId"))

            try:
                await _say(client, path)
                stopped_s = await leaves(running, lambda: _end(reading))
                return Cancel(SSE, CANCEL_WAIT_S, stopped_s, server=server)
            finally:
                await _end(reading)
    except (RefusedError, httpx.HTTPError, TimeoutError):
        return None


async def _end(task: asyncio.Task[None]) -> None:
    """End a reader; how it ended may still be asked."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def _stream(
    door: str,
    answer: httpx.Response | None,
    *,
    arrivals: list[Arrival] | None = None,
    whole: bool = True,
    refusal: Refusal | None = None,
) -> Stream:
    return Stream(
        door=door,
        arrivals=arrivals or [],
        whole=whole,
        http_version=answer.http_version if answer else "",
        server=server_of(answer) if answer else "",
        encoding=answer.headers.get("content-encoding", "") if answer else "",
        refusal=refusal,
    )
