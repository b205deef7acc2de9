"""The session service, called for the owner of a run.

The scheduler's own key says who the owner is: no token of theirs is at hand while nobody watches. See decision 0082.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import grpc
from google.protobuf import json_format

from aiagent.events.v1 import content_pb2
from aiagent.session.v1 import session_pb2, session_service_pb2_grpc
from aiagent.session.v1 import session_service_pb2 as pb
from services.kernel import context
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.grpc import error_from_rpc
from services.kernel.identity import Caller, Role
from services.scheduler.domain.runs import Failure, TurnNow, TurnState, Usage
from services.scheduler.usecases.worker.ports import NewSession, Owner

_CALL_SECONDS: Final = 10.0
_ACTS_FOR: Final = timedelta(minutes=10)
_OPEN = frozenset({"STATE_UNSPECIFIED", "QUEUED", "STARTING", "RUNNING", "WAITING"})


class SessionGateway:
    """See `usecases.worker.ports.Sessions`."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock | None = None) -> None:
        """Args: channel: to the session service, with this service's signer, forwarding the caller."""
        self._stub: session_service_pb2_grpc.SessionServiceAsyncStub = (
            session_service_pb2_grpc.SessionServiceStub(channel)
        )
        self._clock = clock or SystemClock()

    async def create_session(self, owner: Owner, new: NewSession, request_id: str) -> UUID:
        """Creates a session of the owner's."""
        request = pb.CreateSessionRequest(
            name=new.name,
            mode=session_pb2.Session.BACKGROUND,
            labels=dict(new.labels),
            request_id=request_id,
        )
        json_format.ParseDict(dict(new.sdk_options), request.sdk_options)
        request.turn_timeout.FromTimedelta(new.turn_timeout)
        with self._acting(owner):
            made = await _told(self._stub.CreateSession(request, timeout=_CALL_SECONDS))
        return UUID(made.id)

    async def send_message(self, owner: Owner, session_id: UUID, message: str, request_id: str) -> UUID:
        """Sends a message."""
        request = pb.SendMessageRequest(session_id=str(session_id), message=message, request_id=request_id)
        with self._acting(owner):
            turn = await _told(self._stub.SendMessage(request, timeout=_CALL_SECONDS))
        return UUID(turn.id)

    async def wait_turn(self, owner: Owner, session_id: UUID, turn_id: UUID, seconds: int) -> TurnNow:
        """Waits for the end of a turn."""
        request = pb.WaitTurnRequest(session_id=str(session_id), turn_id=str(turn_id), wait_seconds=seconds)
        with self._acting(owner):
            waited = await _told(self._stub.WaitTurn(request, timeout=seconds + _CALL_SECONDS))
        return _turn(waited.turn)

    async def interrupt(self, owner: Owner, session_id: UUID, turn_id: UUID, request_id: str) -> None:
        """Stops a turn."""
        request = pb.InterruptTurnRequest(
            session_id=str(session_id),
            turn_id=str(turn_id),
            reason="the run of its task is to end",
            request_id=request_id,
        )
        with self._acting(owner):
            try:
                await _told(self._stub.InterruptTurn(request, timeout=_CALL_SECONDS))
            except ServiceError as error:
                if (error.kind, error.reason) != (ErrorKind.FAILED_PRECONDITION, "TURN_ENDED"):
                    raise

    @contextmanager
    def _acting(self, owner: Owner) -> Iterator[None]:
        # The same for a while, so that its token is signed once.
        seconds = int(_ACTS_FOR.total_seconds())
        begun = int(self._clock.now().timestamp()) // seconds * seconds
        until = datetime.fromtimestamp(begun, UTC) + 2 * _ACTS_FOR
        # Never more than a user: what runs while nobody watches reaches its owner's own rows alone.
        caller = Caller(owner.user_id, owner.organization_id, "", Role.USER, None, until)
        token = context.caller.set(caller)
        try:
            yield
        finally:
            context.caller.reset(token)


async def _told[T](call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error


def _turn(turn: session_pb2.Turn) -> TurnNow:
    name = session_pb2.Turn.State.Name(turn.state)
    return TurnNow(
        state=TurnState.OPEN if name in _OPEN else TurnState(name),
        result=turn.result.text,
        structured_output_json=turn.structured_output_json,
        failure=_failure(turn.failure) if turn.HasField("failure") else None,
        usage=Usage(
            input_tokens=turn.usage.input_tokens,
            output_tokens=turn.usage.output_tokens,
            cache_read_tokens=turn.usage.cache_read_tokens,
            cache_write_tokens=turn.usage.cache_write_tokens,
        ),
        cost_usd=turn.cost_usd,
    )


def _failure(failure: content_pb2.Failure) -> Failure:
    return Failure(failure.reason, failure.message)
