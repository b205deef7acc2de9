"""The session service as far as scheduler processes call it, over gRPC: `FakeSessions` with a wire in front of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID

from aiagent.session.v1 import session_pb2, session_service_pb2_grpc
from aiagent.session.v1 import session_service_pb2 as pb
from services.scheduler.domain.runs import TurnNow, TurnState
from services.scheduler.usecases.worker.ports import NewSession, Owner
from tests.integration.scheduler.fake_sessions import FakeSessions

_NOBODY = Owner(UUID(int=0), UUID(int=0))


class PlayedSessions(session_service_pb2_grpc.SessionServiceServicer):
    """Turns that work for a while. Request ids are unique as workers make them: of whom a call is does not matter."""

    def __init__(self, longest_seconds: float, chance: random.Random) -> None:
        """Args: longest_seconds: of a turn; chance: draws how long each is."""
        self.fake = FakeSessions()
        self.fake.ends["work"] = None
        self._longest = longest_seconds
        self._chance = chance
        self._begun: set[UUID] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> session_pb2.Session:
        """Creates a session."""
        new = NewSession(request.name, {}, dict(request.labels), request.turn_timeout.ToTimedelta())
        made = await self.fake.create_session(_NOBODY, new, request.request_id)
        return session_pb2.Session(id=str(made))

    async def SendMessage(self, request: pb.SendMessageRequest, context: Any) -> session_pb2.Turn:
        """Sends a message, and lets its turn end by and by."""
        session_id = UUID(request.session_id)
        turn_id = await self.fake.send_message(_NOBODY, session_id, request.message, request.request_id)
        # Whoever calls may give up in between, and call again.
        if turn_id not in self._begun:
            self._begun.add(turn_id)
            seconds = self._chance.uniform(0, self._longest)
            task = asyncio.create_task(self._end(session_id, turn_id, seconds))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        return session_pb2.Turn(id=str(turn_id), session_id=request.session_id)

    async def _end(self, session_id: UUID, turn_id: UUID, seconds: float) -> None:
        await asyncio.sleep(seconds)
        turn = self.fake.sessions[session_id].turns[turn_id]
        if not turn.ended.is_set():
            turn.end(TurnNow(TurnState.SUCCEEDED, result="done"))

    async def WaitTurn(self, request: pb.WaitTurnRequest, context: Any) -> pb.WaitTurnResponse:
        """Waits for the end of a turn."""
        now = await self.fake.wait_turn(
            _NOBODY, UUID(request.session_id), UUID(request.turn_id), request.wait_seconds
        )
        name = "RUNNING" if now.state is TurnState.OPEN else now.state.value
        turn = session_pb2.Turn(id=request.turn_id, state=session_pb2.Turn.State.Value(name))
        turn.result.text = now.result
        return pb.WaitTurnResponse(turn=turn)

    async def InterruptTurn(self, request: pb.InterruptTurnRequest, context: Any) -> session_pb2.Turn:
        """Stops a turn."""
        await self.fake.interrupt(
            _NOBODY, UUID(request.session_id), UUID(request.turn_id), request.request_id
        )
        return session_pb2.Turn(id=request.turn_id, session_id=request.session_id)
