"""An executor that plays what a test tells it, behind the real contract over real gRPC.

The real executor is driven in the end-to-end tests. This one reaches the moments those cannot hold still: a stream that
breaks between two items, an attempt that is unknown, a restart with another incarnation.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc

from aiagent.events.v1 import content_pb2
from aiagent.executor.v1 import executor_service_pb2 as pb
from aiagent.executor.v1 import executor_service_pb2_grpc, turn_item_pb2
from services.kernel import context as call_context
from services.kernel.errors import ErrorKind, ServiceError

Item = turn_item_pb2.TurnItem
Play = Callable[["Attempt"], Awaitable[None]]


def _error(kind: ErrorKind, reason: str) -> ServiceError:
    return ServiceError(kind, reason=reason, domain="executor.aiagent", message=reason)


@dataclass
class Attempt:
    """An attempt as the script sees it."""

    request: pb.RunTurnRequest
    items: list[Item] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    decisions: dict[tuple[str, str], pb.DecideToolRequest] = field(default_factory=dict)
    acknowledged: int = 0
    forgotten: int = 0
    heartbeats: int = 0
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    parked: bool = False
    stops: int = 0
    blocks: int = 0

    def emit(self, **kind: Any) -> None:
        """Adds the next item."""
        self.items.append(Item(offset=len(self.items) + 1, **kind))
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def started(self) -> None:
        """The agent is up."""
        self.emit(
            agent_started=turn_item_pb2.AgentStarted(
                cli_session_id=self.request.cli_session_id or str(uuid4()), model="m", offline_model=True
            )
        )

    def say(self, text: str, pieces: int = 3) -> None:
        """A block of text with its deltas."""
        self.blocks += 1
        size = max(1, len(text) // pieces)
        for begin in range(0, len(text), size):
            self.emit(
                block_delta=turn_item_pb2.BlockDelta(
                    block=self.blocks, text_offset=begin, text=text[begin : begin + size]
                )
            )
        self.emit(block_completed=turn_item_pb2.BlockCompleted(block=self.blocks, text=text, model="m"))

    def ask(self, tool_use_id: str, tool: str, tool_input: dict[str, Any], input_hash: str = "h") -> None:
        """A tool call, and the question about it."""
        use = content_pb2.ToolUse(tool_use_id=tool_use_id, tool_name=tool, input_hash=input_hash)
        use.input_content.text = json.dumps(tool_input)
        self.emit(tool_use=use)
        self.emit(decision_needed=turn_item_pb2.DecisionNeeded(tool_use_id=tool_use_id, tool_use=use))

    async def decided(self, tool_use_id: str, input_hash: str = "") -> pb.DecideToolRequest:
        """Waits for the decision: on this input, or the first on any."""
        while True:
            for (name, decided_hash), decision in self.decisions.items():
                if name == tool_use_id and input_hash in ("", decided_hash):
                    return decision
            changed = self.changed
            await changed.wait()

    def result(self, tool_use_id: str, text: str, *, is_error: bool = False) -> None:
        """The end of a tool call."""
        self.emit(
            tool_result=content_pb2.ToolResult(
                tool_use_id=tool_use_id, content=content_pb2.Content(text=text), is_error=is_error
            )
        )

    def spend(self, cost_usd: float) -> None:
        """A call of the model was answered, and the turn goes on."""
        usage = content_pb2.Usage(input_tokens=3, output_tokens=2, cache_read_tokens=1)
        self.emit(spent=turn_item_pb2.Spent(usage=usage, cost_usd=cost_usd, model_calls=1))

    def end(self, outcome: str, reason: str = "", cost_usd: float = 0.5) -> None:
        """The end of the attempt."""
        ended = turn_item_pb2.AttemptEnded(
            outcome=turn_item_pb2.AttemptEnded.Outcome.Value(outcome),
            usage=content_pb2.Usage(input_tokens=10, output_tokens=5),
            cost_usd=cost_usd,
            model_calls=1,
        )
        if reason:
            ended.failure.reason = reason
            ended.failure.message = f"because of {reason}"
        self.emit(attempt_ended=ended)


class ScriptedExecutor(executor_service_pb2_grpc.ExecutorServiceServicer):
    """Plays `play` for each attempt.

    `break_after` cuts the next stream after that many items; `full` and `draining` take no turns; `restart` forgets
    everything.
    """

    def __init__(self, play: Play) -> None:
        self.play = play
        self.executor_id = "scripted"
        self.incarnation = str(uuid4())
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.runs: list[Attempt] = []
        self.attached = 0
        self.forgotten: list[str] = []
        self.break_after: int | None = None
        self.full = False
        self.max_background_clients = self.background_clients = 0
        self.draining = False
        self.request_ids: dict[str, set[str]] = {}
        self.described = 0
        self._tasks: list[asyncio.Task[None]] = []

    def restart(self) -> None:
        """As after kill -9: another incarnation that knows nothing; streams break."""
        self.incarnation = str(uuid4())
        for task in self._tasks:
            task.cancel()
        for attempt in self.attempts.values():
            attempt.items.append(Item())
            attempt._notify()
        self.attempts.clear()

    def _hear(self) -> None:
        state = call_context.call_state.get()
        assert state is not None
        method = state.method.rpartition("/")[2]
        self.request_ids.setdefault(method, set()).add(call_context.current_request_id())

    def _known(self, fence: pb.Fence) -> Attempt:
        self._hear()
        if fence.incarnation != self.incarnation:
            raise _error(ErrorKind.FAILED_PRECONDITION, "INCARNATION_MISMATCH")
        attempt = self.attempts.get((fence.turn_id, fence.attempt))
        if attempt is None:
            raise _error(ErrorKind.NOT_FOUND, "ATTEMPT_UNKNOWN")
        return attempt

    async def RunTurn(self, request: pb.RunTurnRequest, context: Any) -> AsyncIterator[pb.RunTurnResponse]:
        self._hear()
        if request.fence.incarnation != self.incarnation:
            raise _error(ErrorKind.FAILED_PRECONDITION, "INCARNATION_MISMATCH")
        if self.draining:
            raise _error(ErrorKind.UNAVAILABLE, "DRAINING")
        if self.full:
            raise _error(ErrorKind.RESOURCE_EXHAUSTED, "EXECUTOR_FULL")
        attempt = Attempt(request)
        self.attempts[(request.fence.turn_id, request.fence.attempt)] = attempt
        self.runs.append(attempt)
        self._tasks.append(asyncio.create_task(self._play(attempt)))
        async for item in self._stream(attempt, 0):
            yield pb.RunTurnResponse(items=[item])

    async def _play(self, attempt: Attempt) -> None:
        await self.play(attempt)

    async def AttachTurn(
        self, request: pb.AttachTurnRequest, context: Any
    ) -> AsyncIterator[pb.AttachTurnResponse]:
        attempt = self._known(request.fence)
        self.attached += 1
        if request.after_offset < attempt.forgotten:
            raise _error(ErrorKind.FAILED_PRECONDITION, "OFFSET_GONE")
        async for item in self._stream(attempt, request.after_offset):
            yield pb.AttachTurnResponse(items=[item])

    async def _stream(self, attempt: Attempt, after: int) -> AsyncIterator[Item]:
        sent = 0
        index = after
        while True:
            while index < len(attempt.items):
                item = attempt.items[index]
                if not item.WhichOneof("kind"):
                    raise _error(ErrorKind.UNAVAILABLE, "BROKEN")
                if self.break_after is not None and sent >= self.break_after:
                    self.break_after = None
                    raise _error(ErrorKind.UNAVAILABLE, "BROKEN")
                yield item
                index += 1
                sent += 1
                if item.WhichOneof("kind") == "attempt_ended":
                    return
            await attempt.changed.wait()

    async def AckTurn(self, request: pb.AckTurnRequest, context: Any) -> pb.AckTurnResponse:
        self._known(request.fence).acknowledged = request.offset
        return pb.AckTurnResponse()

    async def DecideTool(self, request: pb.DecideToolRequest, context: Any) -> pb.DecideToolResponse:
        attempt = self._known(request.fence)
        attempt.decisions.setdefault((request.tool_use_id, request.input_hash), request)
        attempt._notify()
        return pb.DecideToolResponse()

    async def InterruptTurn(self, request: pb.InterruptTurnRequest, context: Any) -> pb.InterruptTurnResponse:
        attempt = self._known(request.fence)
        attempt.stops += 1
        if not attempt.interrupted.is_set():
            attempt.parked = request.park
            attempt.interrupted.set()
        return pb.InterruptTurnResponse()

    async def HeartbeatTurn(self, request: pb.HeartbeatTurnRequest, context: Any) -> pb.HeartbeatTurnResponse:
        self._known(request.fence).heartbeats += 1
        return pb.HeartbeatTurnResponse()

    async def ForgetSession(self, request: pb.ForgetSessionRequest, context: Any) -> pb.ForgetSessionResponse:
        self.forgotten.append(request.session_id)
        return pb.ForgetSessionResponse()

    async def GetExecutor(
        self, request: pb.GetExecutorRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetExecutorResponse:
        self.described += 1
        return pb.GetExecutorResponse(
            executor_id=self.executor_id,
            incarnation=self.incarnation,
            max_live_clients=8,
            busy_clients=0,
            max_background_clients=self.max_background_clients,
            background_clients=self.background_clients,
            offline_model=True,
            draining=self.draining,
        )
