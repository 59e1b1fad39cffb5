"""The other yardstick: the least that a Python web server can do to stream tokens to a browser.

`python -m bench.bare_sse PORT` is one ASGI application on uvicorn, which writes a server-sent event
a token, as large as ours, on the schedule that the scripted engine keeps. No framework, no session,
no log, no engine, no proxy in front.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import uvicorn

Message = MutableMapping[str, Any]


def _event(number: int) -> bytes:
    """An event like those that a session sends for a token, and as large."""
    # Nine digits after the point, as proto-JSON has them.
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    event = {
        "seq": str(number),
        "time": now.replace("+00:00", "000Z"),
        "outputDelta": {
            "turnId": "turn_0123456789abcdefghijkl",
            "channel": "CHANNEL_TEXT",
            "text": f" {number}",
            "offset": 4 * number,
            "tokenCount": 1,
        },
    }
    data = json.dumps(event, separators=(",", ":"))
    return f"id: {number}\nevent: output_delta\ndata: {data}\n\n".encode()


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Stream `tokens` events at `rate` a second.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html
    """
    del receive
    asked = parse_qs(scope["query_string"].decode())
    rate, count = float(asked["rate"][0]), int(asked["tokens"][0])
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    begin = time.monotonic()
    for number in range(1, count + 1):
        await asyncio.sleep(max(0.0, begin + (number - 1) / rate - time.monotonic()))
        await send({"type": "http.response.body", "body": _event(number), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


if __name__ == "__main__":
    # Its own defaults, but for the log line a request and events of a server's life.
    uvicorn.run(
        application, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off"
    )
