"""What happened in a session of the scripted server, what its agent does, and how a call of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from aiagent.events.v1 import session_event_pb2 as events
from aiagent.session.v1 import session_pb2, session_service_pb2

Item = events.SessionEvent | session_service_pb2.TextDelta


@dataclass
class Fault:
    """How a call fails; `after` responses, on a stream."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "scripted"
    after: int = 0
    retry_after: float | None = None
    violations: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    async def abort(self, context: Any) -> None:
        details: list[Any] = []
        if self.reason:
            info = error_details_pb2.ErrorInfo(
                reason=self.reason, domain="session.aiagent", metadata=self.metadata
            )
            details += [info, error_details_pb2.RequestInfo(request_id="served-1")]
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(self.retry_after * 1000))
            details.append(retry)
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for name, description in self.violations:
                bad.field_violations.add(field=name, description=description, reason="min_len")
            details.append(bad)
        packed = []
        for detail in details:
            any_message = any_pb2.Any()
            any_message.Pack(detail)
            packed.append(any_message)
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)
        await context.abort_with_status(rpc_status.to_status(status))


@dataclass
class Log:
    """What happened in a session: events with their sequences, and pieces of text between them."""

    session: session_pb2.Session
    items: list[Item] = field(default_factory=list)
    sequence: int = 0
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    turns: list[session_pb2.Turn] = field(default_factory=list)
    requests: dict[str, session_pb2.PermissionRequest] = field(default_factory=dict)
    answers: dict[str, asyncio.Future[bool]] = field(default_factory=dict)
    running: bool = False
    workspace: bytes = b""

    async def event(self, turn_id: str = "", **payload: Any) -> events.SessionEvent:
        self.sequence += 1
        made = events.SessionEvent(
            sequence=self.sequence, turn_id=turn_id, payload=events.SessionEventPayload(**payload)
        )
        made.create_time.GetCurrentTime()
        await self._add(made)
        return made

    async def delta(self, turn_id: str, block: int, offset: int, text: str, **fields: Any) -> None:
        await self._add(
            session_service_pb2.TextDelta(
                turn_id=turn_id,
                attempt=fields.pop("attempt", 1),
                block=block,
                text_offset=offset,
                text=text,
                **fields,
            )
        )

    async def say(self, turn_id: str, block: int, *pieces: str, thinking: bool = False) -> None:
        offset = 0
        for piece in pieces:
            await self.delta(turn_id, block, offset, piece, thinking=thinking)
            offset += len(piece)
        message = events.AssistantMessage(
            message_id=str(uuid4()), attempt=1, block=block, type="THINKING" if thinking else "TEXT"
        )
        message.content.text = "".join(pieces)
        await self.event(turn_id, assistant_message=message)

    async def end(self, turn_id: str, state: str = "SUCCEEDED", **fields: Any) -> None:
        turn = next(turn for turn in self.turns if turn.id == turn_id)
        turn.state = session_pb2.Turn.State.Value(state)
        self.running = False
        ended = events.TurnEnded(state=state, duration_ms=1234, cost_usd=0.0123, model_calls=1, **fields)
        ended.usage.input_tokens, ended.usage.output_tokens = 1200, 34
        await self.event(turn_id, turn_ended=ended)

    async def ask(self, turn_id: str, tool_use: Any) -> bool:
        """Asks a person; returns whether the call was allowed."""
        request = session_pb2.PermissionRequest(
            id=str(uuid4()), session_id=self.session.id, turn_id=turn_id, tool_use=tool_use, state="PENDING"
        )
        self.requests[request.id] = request
        self.answers[request.id] = asyncio.get_running_loop().create_future()
        next(turn for turn in self.turns if turn.id == turn_id).state = session_pb2.Turn.WAITING
        await self.event(
            turn_id,
            permission_requested=events.PermissionRequested(
                permission_request_id=request.id,
                tool_use_id=tool_use.tool_use_id,
                tool_name=tool_use.tool_name,
            ),
        )
        allowed = await self.answers[request.id]
        next(turn for turn in self.turns if turn.id == turn_id).state = session_pb2.Turn.RUNNING
        return allowed

    async def resolve(self, request_id: str, state: str, reason: str = "") -> None:
        request = self.requests[request_id]
        request.state = session_pb2.PermissionRequest.State.Value(state)
        request.reason = reason
        await self.event(
            request.turn_id,
            permission_resolved=events.PermissionResolved(
                permission_request_id=request_id, state=state, reason=reason
            ),
        )
        if not self.answers[request_id].done():
            self.answers[request_id].set_result(state == "ALLOWED")

    async def _add(self, item: Item) -> None:
        self.items.append(item)
        async with self.grown:
            self.grown.notify_all()


Agent = Callable[[Log, str], Awaitable[None]]


async def echo(log: Log, turn_id: str) -> None:
    """An agent that answers with one sentence."""
    await log.say(turn_id, 1, "Hello ", "from the ", "agent.")
    await log.end(turn_id)
