"""The executors, over gRPC: requests from plans, domain items from the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from uuid import UUID

import grpc
import structlog
from google.protobuf import json_format

from aiagent.events.v1 import content_pb2
from aiagent.executor.v1 import executor_service_pb2 as pb
from aiagent.executor.v1 import executor_service_pb2_grpc, turn_item_pb2
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.grpc.status import error_from_rpc
from services.session.domain.entities import Failure, ToolUse, Usage
from services.session.domain.transcripts import AttemptName
from services.session.domain.turn_items import (
    AgentStarted,
    AttemptEnded,
    AttemptKey,
    AttemptPlan,
    BlockCompleted,
    BlockDelta,
    DecisionNeeded,
    ExecutorInfo,
    Noticed,
    Outcome,
    RawToolUse,
    Spent,
    ToolEnded,
    ToolUsed,
    TurnItem,
)
from services.session.gateways.attempt_tokens import AttemptTokens

_log = structlog.get_logger(__name__)
_DESCRIBE_TIMEOUT_SECONDS = 1.0
_CALL_TIMEOUT_SECONDS = 5.0
# What an executor takes as a sign of life is carried out within this time or not at all: its time is stored before
# it is sent, and a new attempt waits until the executor has certainly given the old one up (`HEARTBEAT_GRACE`).
_HEARTBEAT_TIMEOUT_SECONDS = 0.8
UNUSED_SECONDS = 60.0
"""A channel to an executor that nobody names any more is closed when it was not used for so long."""
_GONE = frozenset({"ATTEMPT_UNKNOWN", "TOOL_USE_NOT_WAITING"})


class ExecutorGateway:
    """The executors, each behind a channel of its own: those configured, those registered, those stored with turns."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        tokens: AttemptTokens,
        *,
        registered: Callable[[], Awaitable[Sequence[str]]] | None = None,
        connect: Callable[[str], grpc.aio.Channel] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Composes it.

        Args:
            channels: An open channel for each configured target, `host:port`.
            tokens: Signs what attempts show.
            registered: Tells the targets of those that are there beside them.
            connect: Opens a channel to a target that was not configured.
            clock: Tells how long such a channel has not been used.
        """
        self._tokens = tokens
        self._configured = tuple(channels)
        self._registered = registered
        self._connect = connect
        self._clock = clock or SystemClock()
        self._opened: dict[str, grpc.aio.Channel] = {}
        self._used: dict[str, float] = {}
        self._stubs = {
            target: executor_service_pb2_grpc.ExecutorServiceStub(channel)
            for target, channel in channels.items()
        }

    async def list_executors(self) -> list[ExecutorInfo]:
        """See ExecutorPort."""
        known = await self._known()
        await self._close_unused(known)
        answers = await asyncio.gather(*(self._describe(target) for target in known))
        # One executor may be known by two names.
        return list(
            {answer.incarnation: answer for answer in reversed(answers) if answer is not None}.values()
        )

    async def _known(self) -> list[str]:
        registered = await self._registered() if self._registered is not None else ()
        return list(dict.fromkeys((*self._configured, *registered)))

    async def close(self) -> None:
        """Closes the channels that were opened here."""
        await asyncio.gather(*(channel.close() for channel in self._opened.values()))

    async def _close_unused(self, known: Collection[str]) -> None:
        """Closes the channels to those that have left. One whose items are followed gets a heartbeat each second."""
        now = self._clock.monotonic()
        unused = [
            target
            for target in self._opened
            if target not in known and now - self._used[target] >= UNUSED_SECONDS
        ]
        channels = [self._opened.pop(target) for target in unused]
        for target in unused:
            del self._stubs[target], self._used[target]
        await asyncio.gather(*(channel.close() for channel in channels))

    async def _describe(self, target: str) -> ExecutorInfo | None:
        try:
            info = await self._stub(target).GetExecutor(
                pb.GetExecutorRequest(), timeout=_DESCRIBE_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            _log.warning("executor does not answer", target=target, code=error.code().name)
            return None
        return ExecutorInfo(
            executor_id=info.executor_id,
            target=target,
            incarnation=UUID(info.incarnation),
            max_live_clients=info.max_live_clients,
            live_clients=info.live_clients,
            busy_clients=info.busy_clients,
            offline_model=info.offline_model,
            idle_session_ids=frozenset(UUID(value) for value in info.idle_session_ids),
            draining=info.draining,
            max_background_clients=info.max_background_clients,
            background_clients=info.background_clients,
        )

    def _stub(self, target: str) -> executor_service_pb2_grpc.ExecutorServiceAsyncStub:
        stub = self._stubs.get(target)
        if stub is None and self._connect is not None:
            channel = self._connect(target)
            self._opened[target] = channel
            stub = self._stubs[target] = executor_service_pb2_grpc.ExecutorServiceStub(channel)
        if target in self._opened:
            self._used[target] = self._clock.monotonic()
        if stub is None:
            raise ServiceError(
                ErrorKind.UNAVAILABLE,
                reason="EXECUTOR_NOT_CONFIGURED",
                domain="session.aiagent",
                message="the executor is not configured any more",
            )
        return stub

    async def run(
        self, key: AttemptKey, lease_epoch: int, plan: AttemptPlan
    ) -> AsyncGenerator[Sequence[TurnItem]]:
        """See ExecutorPort."""
        request = pb.RunTurnRequest(
            fence=_fence(key, lease_epoch),
            prompt=plan.prompt,
            prompt_id=str(plan.prompt_id),
            cli_session_id=str(plan.cli_session_id or ""),
            workspace=str(key.session_id),
            budget_usd=plan.budget_usd,
            organization_id=str(plan.organization_id),
            earlier_decisions=[
                pb.EarlierDecision(
                    tool_name=decision.tool_name,
                    input_json=decision.input_json,
                    allowed=decision.allowed,
                    reason=decision.reason,
                )
                for decision in plan.earlier_decisions
            ],
            possibly_run=[
                pb.PossiblyRun(tool_name=name, input_json=text) for name, text in plan.possibly_run
            ],
            transcript_position=plan.transcript_position,
            background=plan.background,
            transcript_token=self._tokens.sign(AttemptName(key.session_id, key.turn_id, key.attempt)),
            finished_calls=[
                pb.FinishedCall(
                    tool_use_id=call.tool_use_id,
                    tool_name=call.tool_name,
                    input_json=call.input_json,
                    result=call.result,
                )
                for call in plan.finished_calls
            ],
        )
        json_format.ParseDict(plan.options, request.options)
        # Present even when every option has its default: the contract asks for it.
        request.options.SetInParent()
        request.timeout.FromMilliseconds(max(1, int(plan.timeout_seconds * 1000)))
        try:
            call = self._stub(key.target).RunTurn(request)
            await call.initial_metadata()
            yield []
            async for response in call:
                yield [_item(item) for item in response.items]
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def attach(
        self, key: AttemptKey, lease_epoch: int, after_offset: int
    ) -> AsyncGenerator[Sequence[TurnItem]]:
        """See ExecutorPort."""
        request = pb.AttachTurnRequest(fence=_fence(key, lease_epoch), after_offset=after_offset)
        try:
            call = self._stub(key.target).AttachTurn(request)
            await call.initial_metadata()
            yield []
            async for response in call:
                yield [_item(item) for item in response.items]
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def acknowledge(self, key: AttemptKey, lease_epoch: int, offset: int) -> None:
        """See ExecutorPort."""
        request = pb.AckTurnRequest(fence=_fence(key, lease_epoch), offset=offset)
        await self._call(self._stub(key.target).AckTurn(request, timeout=_HEARTBEAT_TIMEOUT_SECONDS))

    async def decide(
        self, key: AttemptKey, lease_epoch: int, tool_use: ToolUse, allow: bool, reason: str
    ) -> None:
        """See ExecutorPort."""
        request = pb.DecideToolRequest(
            fence=_fence(key, lease_epoch),
            tool_use_id=tool_use.tool_use_id,
            input_hash=tool_use.input_hash,
            allow=allow,
            reason=reason,
        )
        await self._call(self._stub(key.target).DecideTool(request, timeout=_CALL_TIMEOUT_SECONDS))

    async def interrupt(self, key: AttemptKey, lease_epoch: int, *, park: bool) -> None:
        """See ExecutorPort."""
        request = pb.InterruptTurnRequest(fence=_fence(key, lease_epoch), park=park)
        await self._call(self._stub(key.target).InterruptTurn(request, timeout=_CALL_TIMEOUT_SECONDS))

    async def heartbeat(self, key: AttemptKey, lease_epoch: int) -> None:
        """See ExecutorPort."""
        request = pb.HeartbeatTurnRequest(fence=_fence(key, lease_epoch))
        await self._call(self._stub(key.target).HeartbeatTurn(request, timeout=_HEARTBEAT_TIMEOUT_SECONDS))

    async def forget(self, session_id: UUID, lease_epoch: int, ran_on: Collection[str]) -> None:
        """See ExecutorPort."""
        request = pb.ForgetSessionRequest(session_id=str(session_id), lease_epoch=lease_epoch)
        known = await self._known()

        async def tell(target: str) -> None:
            try:
                await self._call(self._stub(target).ForgetSession(request, timeout=_CALL_TIMEOUT_SECONDS))
            except ServiceError as error:
                # One that nobody knows any more must not hold the removal up for ever.
                if target in known or error.kind is not ErrorKind.UNAVAILABLE:
                    raise
                _log.warning("an executor that is gone may still have files of a session", target=target)

        await asyncio.gather(*(tell(target) for target in dict.fromkeys((*known, *ran_on))))

    async def _call(self, call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            failure = error_from_rpc(error)
            if failure.reason not in _GONE:
                raise failure from error


def _fence(key: AttemptKey, lease_epoch: int) -> pb.Fence:
    return pb.Fence(
        session_id=str(key.session_id),
        turn_id=str(key.turn_id),
        attempt=key.attempt,
        lease_epoch=lease_epoch,
        incarnation=str(key.incarnation),
    )


def _uuid(text: str) -> UUID | None:
    return UUID(text) if text else None


def _tool_use(message: content_pb2.ToolUse) -> RawToolUse:
    # Between executor and driver an input travels whole: as a structure, or as text when the executor says so.
    if message.HasField("input_content"):
        text = message.input_content.text
    else:
        text = json_format.MessageToJson(message.input, indent=None, ensure_ascii=False)
    return RawToolUse(
        tool_use_id=message.tool_use_id,
        tool_name=message.tool_name,
        input_json=text,
        input_hash=message.input_hash,
        parent_tool_use_id=message.parent_tool_use_id,
    )


def _item(message: turn_item_pb2.TurnItem) -> TurnItem:
    offset = message.offset
    match message.WhichOneof("kind"):
        case "block_delta":
            delta = message.block_delta
            return BlockDelta(offset, delta.block, delta.thinking, delta.text_offset, delta.text)
        case "block_completed":
            block = message.block_completed
            return BlockCompleted(
                offset, block.block, block.thinking, block.text, block.model, block.parent_tool_use_id
            )
        case "tool_use":
            return ToolUsed(offset, _tool_use(message.tool_use))
        case "decision_needed":
            return DecisionNeeded(offset, _tool_use(message.decision_needed.tool_use))
        case "tool_result":
            result = message.tool_result
            return ToolEnded(offset, result.tool_use_id, result.content.text, result.is_error)
        case "agent_started":
            started = message.agent_started
            return AgentStarted(offset, _uuid(started.cli_session_id), started.model, started.offline_model)
        case "notice":
            return Noticed(offset, message.notice.code, message.notice.message)
        case "spent":
            spent = message.spent
            return Spent(offset, _usage(spent.usage), spent.cost_usd, spent.model_calls)
        case "attempt_ended":
            return _ended(offset, message.attempt_ended)
        case kind:
            # An executor newer than this service: what it adds is told, not dropped silently.
            return Noticed(offset, "UNKNOWN_ITEM", f"the executor reported an unknown item: {kind}")


def _usage(usage: content_pb2.Usage) -> Usage:
    return Usage(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)


def _ended(offset: int, ended: turn_item_pb2.AttemptEnded) -> AttemptEnded:
    return AttemptEnded(
        offset=offset,
        outcome=Outcome(turn_item_pb2.AttemptEnded.Outcome.Name(ended.outcome)),
        failure=Failure(ended.failure.reason, ended.failure.message) if ended.HasField("failure") else None,
        usage=_usage(ended.usage),
        cost_usd=ended.cost_usd,
        model_calls=ended.model_calls,
        cli_session_id=_uuid(ended.cli_session_id),
        structured_output_json=ended.structured_output_json,
    )
