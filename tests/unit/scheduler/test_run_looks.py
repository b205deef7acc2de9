"""How often the database is asked for what watchers wait for: not more than is needed, and never in vain for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from services.kernel.clock import SystemClock
from services.kernel.errors import unavailable
from services.kernel.lifecycle import Drain
from services.scheduler.usecases import watching
from services.scheduler.usecases.watching import RunLooks

pytestmark = pytest.mark.unit


class Versions:
    """Runs that have versions, and a database that may be away."""

    def __init__(self) -> None:
        self.asked: list[set[UUID]] = []
        self.known: dict[UUID, int] = {}
        self.away = False
        self.answered = asyncio.Event()

    async def __call__(self, run_ids: Collection[UUID]) -> dict[UUID, int]:
        self.asked.append(set(run_ids))
        self.answered.set()
        if self.away:
            raise unavailable("DATABASE_UNAVAILABLE", "gone")
        return {run_id: self.known[run_id] for run_id in run_ids if run_id in self.known}


@pytest.fixture
def versions() -> Versions:
    return Versions()


@pytest_asyncio.fixture
async def looks(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunLooks]:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 3600)
    made = RunLooks(versions, Drain(), SystemClock())
    await made.start()
    yield made
    await made.stop()


async def woken(place: watching._Place) -> int | None:
    async with asyncio.timeout(5):
        await place.woken.wait()
    place.woken.clear()
    return place.version


async def test_nobody_is_asked_while_nobody_watches(versions: Versions, looks: RunLooks) -> None:
    looks.wake()
    run_id = uuid4()
    versions.known[run_id] = 4
    with looks.place(run_id) as place:
        assert await woken(place) == 4
    assert versions.asked == [{run_id}]
    looks.wake()
    await asyncio.sleep(2 * watching.REST_SECONDS)
    assert versions.asked == [{run_id}]


async def test_one_question_serves_all_watchers(versions: Versions, looks: RunLooks) -> None:
    first, second = uuid4(), uuid4()
    versions.known = {first: 1, second: 1}
    with looks.place(first) as one, looks.place(first) as another, looks.place(second) as third:
        assert [await woken(place) for place in (one, another, third)] == [1, 1, 1]
        assert versions.asked == [{first, second}]
        versions.known = {first: 2}
        looks.wake()
        assert [await woken(place) for place in (one, another, third)] == [2, 2, None]
        assert len(versions.asked) == 2


async def test_many_commits_cause_few_questions(versions: Versions, looks: RunLooks) -> None:
    run_id = uuid4()
    loop = asyncio.get_running_loop()
    with looks.place(run_id):
        begun = loop.time()
        while loop.time() - begun < 10 * watching.REST_SECONDS:
            looks.wake()
            await asyncio.sleep(0)
        assert 2 <= len(versions.asked) <= 11


async def test_a_database_that_is_away_is_asked_again(
    versions: Versions, looks: RunLooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = uuid4()
    versions.known[run_id] = 3
    versions.away = True
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)
    with looks.place(run_id) as place:
        await asyncio.wait_for(versions.answered.wait(), 5)
        assert not place.woken.is_set()
        versions.away = False
        assert await woken(place) == 3
