"""`ExecutorService`: maps, calls, maps back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import structlog
from google.protobuf import json_format

from aiagent.events.v1 import content_pb2
from aiagent.executor.v1 import executor_service_pb2 as pb
from aiagent.executor.v1 import executor_service_pb2_grpc, turn_item_pb2
from services.executor.domain import items
from services.executor.usecases.attempt import Attempt, Numbered
from services.executor.usecases.ports import TurnRequest
from services.executor.usecases.turns import Fence, Turns
from services.kernel.context import current_request_id
from services.kernel.grpc import MethodPolicy, accept_stream, services

_SERVICE = pb.DESCRIPTOR.services_by_name["ExecutorService"]
POLICIES: dict[str, MethodPolicy] = {
    f"/{_SERVICE.full_name}/{method.name}": services("session") for method in _SERVICE.methods
}


class ExecutorServicer(executor_service_pb2_grpc.ExecutorServiceServicer):
    """The executor's methods; only the session service may call them."""

    def __init__(self, turns: Turns, executor_id: str, *, offline_model: bool, isolation: str) -> None:
        """Args: turns: what runs; executor_id: its name; offline_model, isolation: for GetExecutor."""
        self._turns = turns
        self._executor_id = executor_id
        self._offline_model = offline_model
        self._isolation = isolation

    async def RunTurn(self, request: pb.RunTurnRequest, context: Any) -> AsyncIterator[pb.RunTurnResponse]:
        """Starts an attempt and streams its items."""
        attempt = self._turns.begin(_fence(request.fence), _turn(request))
        await accept_stream(context)
        async for batch in attempt.read(0):
            yield pb.RunTurnResponse(items=[_item(numbered) for numbered in batch])

    async def AttachTurn(
        self, request: pb.AttachTurnRequest, context: Any
    ) -> AsyncIterator[pb.AttachTurnResponse]:
        """Takes up the items of an attempt."""
        attempt: Attempt = self._turns.known(_fence(request.fence))
        await accept_stream(context)
        async for batch in attempt.read(request.after_offset):
            yield pb.AttachTurnResponse(items=[_item(numbered) for numbered in batch])

    async def AckTurn(self, request: pb.AckTurnRequest, context: Any) -> pb.AckTurnResponse:
        """Acknowledges items."""
        self._turns.acknowledge(_fence(request.fence), request.offset)
        return pb.AckTurnResponse()

    async def DecideTool(self, request: pb.DecideToolRequest, context: Any) -> pb.DecideToolResponse:
        """Answers the waiting agent."""
        self._turns.decide(
            _fence(request.fence),
            request.tool_use_id,
            items.Decision(request.allow, request.reason),
            request.input_hash,
        )
        return pb.DecideToolResponse()

    async def InterruptTurn(self, request: pb.InterruptTurnRequest, context: Any) -> pb.InterruptTurnResponse:
        """Stops an attempt."""
        self._turns.interrupt(_fence(request.fence), park=request.park)
        return pb.InterruptTurnResponse()

    async def HeartbeatTurn(self, request: pb.HeartbeatTurnRequest, context: Any) -> pb.HeartbeatTurnResponse:
        """The driver lives."""
        self._turns.heartbeat(_fence(request.fence))
        return pb.HeartbeatTurnResponse()

    async def ForgetSession(self, request: pb.ForgetSessionRequest, context: Any) -> pb.ForgetSessionResponse:
        """Forgets a session."""
        await self._turns.forget(UUID(request.session_id), request.lease_epoch)
        return pb.ForgetSessionResponse()

    async def GetExecutor(self, request: pb.GetExecutorRequest, context: Any) -> pb.GetExecutorResponse:
        """Describes the executor."""
        live, busy, idle = self._turns.counts()
        return pb.GetExecutorResponse(
            executor_id=self._executor_id,
            incarnation=str(self._turns.incarnation),
            max_live_clients=self._turns.max_live_clients,
            live_clients=live,
            busy_clients=busy,
            offline_model=self._offline_model,
            isolation=pb.GetExecutorResponse.Isolation.Value(self._isolation),
            idle_session_ids=[str(session_id) for session_id in idle],
            draining=self._turns.draining,
            max_background_clients=self._turns.max_background_clients,
            background_clients=self._turns.background_clients,
        )


def _fence(fence: pb.Fence) -> Fence:
    structlog.contextvars.bind_contextvars(
        session_id=fence.session_id, turn_id=fence.turn_id, attempt=fence.attempt
    )
    return Fence(
        UUID(fence.session_id), UUID(fence.turn_id), fence.attempt, fence.lease_epoch, UUID(fence.incarnation)
    )


def _turn(request: pb.RunTurnRequest) -> TurnRequest:
    return TurnRequest(
        session_id=UUID(request.fence.session_id),
        organization_id=UUID(request.organization_id),
        turn_id=UUID(request.fence.turn_id),
        attempt=request.fence.attempt,
        options=json_format.MessageToDict(request.options, preserving_proto_field_name=True),
        prompt=request.prompt,
        prompt_id=UUID(request.prompt_id),
        cli_session_id=request.cli_session_id,
        workspace=request.workspace,
        timeout_seconds=request.timeout.ToTimedelta().total_seconds(),
        budget_usd=request.budget_usd,
        earlier_decisions=tuple(
            (decision.tool_name, decision.input_json, decision.allowed, decision.reason)
            for decision in request.earlier_decisions
        ),
        possibly_run=tuple((call.tool_name, call.input_json) for call in request.possibly_run),
        transcript_position=request.transcript_position,
        transcript_token=request.transcript_token,
        finished_calls=tuple(
            (call.tool_use_id, call.tool_name, call.input_json, call.result)
            for call in request.finished_calls
        ),
        request_id=current_request_id(),
        background=request.background,
    )


def _tool_use(value: items.ToolUse) -> content_pb2.ToolUse:
    # The input travels as text: a structure would make every number a double.
    return content_pb2.ToolUse(
        tool_use_id=value.tool_use_id,
        tool_name=value.tool_name,
        input_content=content_pb2.Content(text=value.input_json),
        input_hash=value.input_hash,
        parent_tool_use_id=value.parent_tool_use_id,
    )


def _item(numbered: Numbered) -> turn_item_pb2.TurnItem:
    message = turn_item_pb2.TurnItem(offset=numbered.offset)
    match numbered.item:
        case items.AgentStarted() as item:
            message.agent_started.CopyFrom(
                turn_item_pb2.AgentStarted(
                    cli_session_id=item.cli_session_id,
                    reused=item.reused,
                    model=item.model,
                    offline_model=item.offline_model,
                )
            )
        case items.BlockDelta() as item:
            message.block_delta.block = item.block
            message.block_delta.thinking = item.thinking
            message.block_delta.text_offset = item.text_offset
            message.block_delta.text = item.text
        case items.BlockCompleted() as item:
            message.block_completed.CopyFrom(
                turn_item_pb2.BlockCompleted(
                    block=item.block,
                    thinking=item.thinking,
                    text=item.text,
                    model=item.model,
                    parent_tool_use_id=item.parent_tool_use_id,
                )
            )
        case items.ToolUse() as item:
            message.tool_use.CopyFrom(_tool_use(item))
        case items.DecisionNeeded() as item:
            message.decision_needed.tool_use_id = item.tool_use.tool_use_id
            message.decision_needed.tool_use.CopyFrom(_tool_use(item.tool_use))
        case items.ToolResult() as item:
            message.tool_result.tool_use_id = item.tool_use_id
            message.tool_result.content.text = item.text
            message.tool_result.is_error = item.is_error
        case items.Notice() as item:
            message.notice.code, message.notice.message = item.code, item.message
        case items.Spent() as item:
            message.spent.usage.CopyFrom(_usage(item.usage))
            message.spent.cost_usd, message.spent.model_calls = item.cost_usd, item.model_calls
        case items.AttemptEnded() as item:
            message.attempt_ended.CopyFrom(_ended(item))
    return message


def _usage(usage: items.Usage) -> content_pb2.Usage:
    return content_pb2.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )


def _ended(item: items.AttemptEnded) -> turn_item_pb2.AttemptEnded:
    ended = turn_item_pb2.AttemptEnded(
        outcome=turn_item_pb2.AttemptEnded.Outcome.Value(item.outcome.value),
        usage=_usage(item.spent.usage),
        cost_usd=item.spent.cost_usd,
        model_calls=item.spent.model_calls,
        cli_session_id=item.cli_session_id,
        structured_output_json=item.structured_output_json,
    )
    if item.reason:
        ended.failure.reason, ended.failure.message = item.reason, item.message
    return ended
