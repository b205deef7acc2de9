"""How often a worker claims: at once when it is woken, and not more often than is good for the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest

from services.kernel.clock import SystemClock
from services.scheduler.domain.runs import Claim
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker import RunWorker, pool
from services.scheduler.usecases.worker.ports import Claimed, Progress, Renewal
from tests.integration.scheduler.fake_sessions import FakeSessions

pytestmark = pytest.mark.unit


class Nothing:
    """A queue in which there is never anything."""

    claims = 0

    async def claim(self, holder: str, limit: int) -> Claimed:
        self.claims += 1
        await asyncio.sleep(0)
        return Claimed([])

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        return Renewal()

    async def record(self, steps: Sequence[Progress]) -> list[RunState | None]:
        return []

    async def release(self, held: Sequence[Claim]) -> None:
        return

    async def hopeless(self) -> list[UUID]:
        return []

    async def give_up(self, run_id: UUID, holder: str) -> Claim | None:
        return None

    async def promote_forgotten(self) -> int:
        return 0

    async def end_of_deleted_tasks(self) -> int:
        return 0


@pytest.fixture
def queue() -> Nothing:
    return Nothing()


@pytest.fixture
async def worker(queue: Nothing) -> AsyncIterator[RunWorker]:
    made = RunWorker(queue, FakeSessions(), holder="w", clock=SystemClock(), places=4, look_seconds=3600)
    await made.start()
    yield made
    await made.drain()


async def test_a_flood_of_wake_ups_causes_few_claims(queue: Nothing, worker: RunWorker) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() - begun < 20 * pool.REST_SECONDS:
        worker.wake()
        await asyncio.sleep(0)
    assert 2 <= queue.claims <= 21


async def test_who_was_idle_claims_at_once(queue: Nothing, worker: RunWorker) -> None:
    loop = asyncio.get_running_loop()
    while not queue.claims:
        await asyncio.sleep(0)
    rested = loop.time() + 2 * pool.REST_SECONDS
    while loop.time() < rested:
        await asyncio.sleep(0)
    worker.wake()
    # No timer runs out meanwhile.
    for _ in range(10):
        await asyncio.sleep(0)
    assert queue.claims == 2
