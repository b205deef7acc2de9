"""An executor's turns with scripted agents, for tests."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from services.executor.domain.items import AgentStarted, AttemptEnded
from services.executor.usecases.attempt import Attempt
from services.executor.usecases.ports import TurnRequest
from services.executor.usecases.turns import Fence, Turns
from services.kernel.errors import ServiceError
from services.kernel.testing import FakeClock

from .scripted_agent import Play, ScriptedAgents, a_request

IDLE_SECONDS = 300.0
PLACES = 2


class Bench:
    """An executor's turns with scripted agents and a clock that is moved by hand."""

    def __init__(self, *plays: Play) -> None:
        self.clock = FakeClock()
        self.agents = ScriptedAgents(*plays)
        self.turns = Turns(
            self.agents,
            incarnation=uuid4(),
            clock=self.clock,
            max_live_clients=PLACES,
            idle_seconds=IDLE_SECONDS,
        )
        self.watch = asyncio.create_task(self.turns.watch())

    def fence(self, request: TurnRequest, epoch: int = 1) -> Fence:
        return Fence(request.session_id, request.turn_id, request.attempt, epoch, self.turns.incarnation)

    def begin(self, request: TurnRequest | None = None, epoch: int = 1) -> Attempt:
        request = request or a_request()
        return self.turns.begin(self.fence(request, epoch), request)

    async def to_end(self, attempt: Attempt) -> AttemptEnded:
        async for batch in attempt.read(0):
            if isinstance(batch[-1].item, AttemptEnded):
                # The place is given back after the end was told.
                while any(live.attempt is attempt for live in self.turns._live.values()):
                    await asyncio.sleep(0)
                return batch[-1].item
        raise AssertionError("no end")

    async def seconds(self, seconds: float, attempt: Attempt | None = None) -> None:
        """Lets time go by, with a driver that gives signs of life when an attempt is named."""
        for _ in range(int(seconds)):
            await self.clock.wait_for_sleepers()
            if attempt is not None:
                attempt.hear()
            await self.clock.advance(1)


def refused(error: pytest.ExceptionInfo[ServiceError]) -> str:
    return error.value.reason


async def started(attempt: Attempt) -> None:
    async for batch in attempt.read(0):
        if isinstance(batch[0].item, AgentStarted):
            return
