"""Running the tool calls of a conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from backchannel.client.errors import ClientError, StatusError
from backchannel.client.outbox import Outbox, new_id
from backchannel.client.tools import Tool, ToolContext
from backchannel.v1.event_pb2 import ToolCallReady
from backchannel.v1.frame_pb2 import ClientFrame, ToolProgress
from backchannel.v1.session_pb2 import ToolCall, ToolError, ToolResult

logger = logging.getLogger(__name__)


class ToolCalls:
    """The calls that this client runs, each in a task of its own.

    A call is run once, from when it is announced until its result is receipted. The server owns the
    deadlines; here they only end what nobody waits for any more.

    Args:
        tools: What this client can run. Calls of other tools are somebody else's.
        outbox: Where results and progress go.
        max_concurrent: How many run at the same time.
    """

    def __init__(self, tools: Iterable[Tool], outbox: Outbox, max_concurrent: int) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self._outbox = outbox
        self._slots = asyncio.Semaphore(max_concurrent)
        self._running: dict[str, _Call] = {}
        self._group: asyncio.TaskGroup | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Run calls in this group from now on."""
        self._group = group

    def ready(self, call: ToolCallReady | ToolCall, now: Timestamp) -> None:
        """A call is open: run it, if it is ours and not running already.

        Args:
            call: The call.
            now: The time by the server's clock, so that clocks need not agree.
        """
        tool = self._tools.get(call.name)
        if tool is None or call.call_id in self._running or self._group is None:
            return
        running = _Call(call, now, tool, self._outbox, self._slots)
        self._running[call.call_id] = running
        running.task = self._group.create_task(self._run(running), name=f"tool-{call.name}")

    def stop(self, call_id: str) -> None:
        """The call is over, or nobody waits for it any more."""
        running = self._running.get(call_id)
        if running is not None:
            running.stop()

    def stop_all(self) -> None:
        """The conversation is over."""
        for running in self._running.values():
            if running.task is not None:
                running.task.cancel()

    async def _run(self, running: _Call) -> None:
        try:
            await running.run()
        except ClientError as error:
            logger.warning("no result of tool call %s: %s", running.call_id, error)
        finally:
            del self._running[running.call_id]


class _Call:
    """One call: a tool at work, then a result on its way."""

    def __init__(
        self,
        call: ToolCallReady | ToolCall,
        now: Timestamp,
        tool: Tool,
        outbox: Outbox,
        slots: asyncio.Semaphore,
    ) -> None:
        self.call_id = call.call_id
        self.task: asyncio.Task[None] | None = None
        self._arguments_json = call.arguments_json
        self._tool = tool
        self._outbox = outbox
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._context = ToolContext(call.call_id, call.name, self._progress)
        self._idle_s = _left_s(call.idle_deadline, now)
        self._deadline_s = self._loop.time() + _left_s(call.deadline, now)
        self._scope = asyncio.timeout_at(self._next_deadline_s())
        self._stopped = False
        self._at_work = False

    async def run(self) -> None:
        """Run the tool, send what comes of it, and wait until that is receipted."""
        result = None
        try:
            async with self._scope, self._slots:
                self._at_work = not self._stopped
                if self._at_work:
                    result = await self._tool.run(
                        self._arguments_json, self._context, self._deliver
                    )
        except TimeoutError:
            # A TimeoutError of the tool's own is a result by now. This one is the deadline's, at
            # which the server has told the model "timed out", or the call is over already.
            logger.info("tool call %s ran out of time or was stopped", self.call_id)
        except StatusError as refused:  # A part of the result was.
            result = self._refusal(refused)
        finally:
            self._at_work = False
            self._context.cancelled.set()
        if result is not None:
            await self._answer(result)

    def stop(self) -> None:
        """Let the tool go, unless it has its result already."""
        self._stopped = True
        self._context.cancelled.set()
        if self._at_work and not self._scope.expired():
            self._at_work = False
            self._scope.reschedule(self._loop.time())

    def _progress(self, fraction: float | None, note: str) -> None:
        # From a thread, too.
        self._loop.call_soon_threadsafe(self._send_progress, fraction, note)

    def _send_progress(self, fraction: float | None, note: str) -> None:
        if not self._at_work or self._scope.expired():
            return
        progress = ToolProgress(call_id=self.call_id, fraction=fraction, note=note)
        self._outbox.post(f"progress {self.call_id}", ClientFrame(tool_progress=progress))
        self._scope.reschedule(self._next_deadline_s())

    def _next_deadline_s(self) -> float:
        return min(self._loop.time() + self._idle_s, self._deadline_s)

    async def _deliver(self, part: ToolResult) -> None:
        await self._outbox.send(ClientFrame(frame_id=new_id(), tool_result=part))
        if self._at_work and not self._scope.expired():
            self._scope.reschedule(self._next_deadline_s())

    async def _answer(self, result: ToolResult) -> None:
        try:
            await self._outbox.send(ClientFrame(frame_id=new_id(), tool_result=result))
        except StatusError as error:
            if result.HasField("error"):
                raise
            await self._answer(self._refusal(error))

    def _refusal(self, refused: StatusError) -> ToolResult:
        """What the model is told when the server does not take a result: it may be too long."""
        if refused.code != code_pb2.INVALID_ARGUMENT:
            raise refused
        # Without any result the model would wait until the deadline.
        error = ToolError(message=f"the result was refused: {refused}", code=refused.reason)
        return ToolResult(call_id=self.call_id, error=error, scheduling=self._tool.scheduling)


def _left_s(deadline: Timestamp, now: Timestamp) -> float:
    return max((deadline.ToNanoseconds() - now.ToNanoseconds()) / 1e9, 0.0)
