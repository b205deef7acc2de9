"""Schedules fire: when, how often, and beside whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest
import sqlalchemy as sa

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.errors import ServiceError
from services.kernel.ids import Uuid7Source
from services.kernel.supervision import supervise
from services.scheduler.domain.entities import TaskVariable
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import Timing
from services.scheduler.domain.variables import VariableType
from services.scheduler.store.facts import OUTBOX, RUNS_QUEUED
from services.scheduler.store.firing import FiringTransaction
from services.scheduler.store.notes import CHANNEL, SCHEDULES_CHANGED
from services.scheduler.store.system_queries import FireQueries
from services.scheduler.usecases.firing import Ticker
from services.scheduler.usecases.firing.ports import Fired
from tests.databases import Copy

from .ticking import MINUTE, Clockwork, clockwork, owner

pytestmark = pytest.mark.integration
P = OverlapPolicy
WHO = TaskVariable("who", VariableType.STRING, required=True)


@pytest.fixture
async def works(scheduler_database: Database) -> AsyncIterator[Clockwork]:
    async with clockwork(scheduler_database) as made:
        yield made


async def test_a_fire_makes_a_run_that_says_what_its_task_says(works: Clockwork) -> None:
    schedule = await works.due(
        task={"prompt_template": "greet {{ who }}", "variables": (WHO,), "priority": 7},
        variables={"who": "Ada"},
    )
    due = (await works.read(schedule)).next_due_time
    woken = asyncio.Event()
    works.database.on_commit(RUNS_QUEUED, woken.set)
    await works.tick()
    (run,) = await works.runs(schedule)
    assert (run.state, run.fire_time, run.due_time) == ("QUEUED", due, due)
    assert (run.prompt, run.variables, run.priority, run.user_id) == (
        "greet Ada",
        {"who": "Ada"},
        7,
        schedule.user_id,
    )
    moved = await works.read(schedule)
    assert (moved.next_fire_time, moved.last_fire_time) == (due + MINUTE, due)
    assert (moved.version, moved.update_time) == (schedule.version, schedule.update_time)
    assert woken.is_set(), "the worker of this process hears of it"
    async with works.database.system() as connection:
        facts = [
            fact
            for fact in await OUTBOX.claim(connection, 1000)
            if fact.organization_id == schedule.organization_id
        ]
    assert [fact.topic for fact in facts] == ["runs"]


async def test_nothing_fires_before_it_is_due(works: Clockwork) -> None:
    schedule = await works.schedule()
    await works.tick()
    assert await works.runs(schedule) == []
    seconds = await works.queries.seconds_to_fire([])
    assert seconds is not None and 0 < seconds <= 60


async def test_replicas_share_what_is_due(works: Clockwork) -> None:
    # Two fires of each are too late.
    made = [await works.due(3 * MINUTE, catch_up_window=timedelta(seconds=30)) for _ in range(120)]
    tickers = [works.ticker() for _ in range(4)]

    async def work(index: int) -> int:
        looks = 0
        while await tickers[index].tick():
            looks += 1
        return looks

    # One that finds all that is due locked by others ends: what those took they make.
    looks = await asyncio.gather(*(work(index) for index in range(4)))
    assert sum(looks) >= 3
    assert [len(await works.runs(schedule)) for schedule in made] == [1] * 120
    assert {(await works.read(schedule)).missed_fires for schedule in made} == {2}


async def test_a_replica_that_dies_before_its_commit_has_made_nothing(works: Clockwork) -> None:
    schedule = await works.due(3 * MINUTE)

    class Dies(FiringTransaction):
        async def record(self, fired: Sequence[Fired]) -> None:
            await super().record(fired)
            raise asyncio.CancelledError

    before = await works.read(schedule)
    with pytest.raises(asyncio.CancelledError):
        async with works.database.system() as connection:
            transaction = Dies(connection)
            works.queries.begin = lambda: _given(transaction)  # type: ignore[method-assign]
            await works.ticker().tick()
    del works.queries.begin
    assert (await works.read(schedule), await works.runs(schedule)) == (before, [])
    await works.tick()
    assert len(await works.runs(schedule)) == 3


class _given:
    """A transaction that somebody else ends."""

    def __init__(self, transaction: FiringTransaction) -> None:
        self._transaction = transaction

    async def __aenter__(self) -> FiringTransaction:
        return self._transaction

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_a_fire_that_is_there_already_is_not_made_again(works: Clockwork) -> None:
    schedule = await works.due(3 * MINUTE)
    await works.tick()
    await works.rewind(schedule, 3 * MINUTE)
    await works.tick()
    assert len(await works.runs(schedule)) == 3


class Asleep(FireQueries):
    """Tells when a ticker has found that nothing will be due."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.told = asyncio.Event()

    async def seconds_to_fire(self, aside: Sequence[UUID]) -> float | None:
        seconds = await super().seconds_to_fire(aside)
        if seconds is None:
            self.told.set()
        return seconds


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_sleeping_replica_hears_of_a_schedule(
    works: Clockwork, databases: Copy, elsewhere: bool
) -> None:
    # In the process in which it is made, and in another one.
    database = databases.open("scheduler")
    queries, clock, listening = Asleep(database), SystemClock(), asyncio.Event()
    ticker = Ticker(queries, Uuid7Source(), clock)

    def heard() -> None:
        listening.set()
        ticker.wake()

    loops = []
    if elsewhere:
        loops.append(asyncio.create_task(database.listen(CHANNEL, heard)))
        await listening.wait()
    else:
        works.database.on_commit(SCHEDULES_CHANGED, ticker.wake)
    loops.append(asyncio.create_task(supervise("tick", ticker.run, clock)))
    await queries.told.wait()
    schedule = await works.schedule(timing=Timing(interval=timedelta(seconds=1)))
    await works.until(schedule, 1)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    works.database.on_commit(SCHEDULES_CHANGED, lambda: None)
    await database.close()


async def test_who_listens_hears_that_the_database_has_gone(works: Clockwork, databases: Copy) -> None:
    database = databases.open("scheduler", application_name="deaf")
    listening = asyncio.Event()
    task = asyncio.create_task(database.listen(CHANNEL, listening.set))
    await listening.wait()
    async with works.database.system() as connection:
        await connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'deaf/listener'"
            )
        )
    with pytest.raises(ServiceError, match="cannot be reached"):
        async with asyncio.timeout(5):
            await task
    await database.close()


@pytest.mark.parametrize(
    ("policy", "states", "reasons", "cancelled"),
    [
        (P.SKIP, ["SKIPPED", "SKIPPED"], ["OVERLAP", "OVERLAP"], False),
        (P.BUFFER_ONE, ["PENDING", "SKIPPED"], [None, "BUFFER_FULL"], False),
        (P.BUFFER_ALL, ["PENDING", "PENDING"], [None, None], False),
        (P.CANCEL_OTHER, ["SKIPPED", "PENDING"], ["SUPERSEDED", None], True),
        (P.TERMINATE_OTHER, ["CANCELLED", "QUEUED"], [None, None], True),
        (P.ALLOW_ALL, ["QUEUED", "QUEUED"], [None, None], False),
    ],
)
async def test_beside_a_run_that_goes_on(
    works: Clockwork, policy: P, states: list[str], reasons: list[str | None], cancelled: bool
) -> None:
    schedule = await works.due(overlap_policy=policy)
    await works.tick()
    (first,) = await works.runs(schedule)
    await works.begin(first.id)
    # Two more are due at once: the later meets what the earlier has left.
    await works.change(
        schedule.id, handled_until=first.fire_time - 2 * MINUTE, next_due_time=first.fire_time - MINUTE
    )
    await works.change_run(first.id, fire_time=first.fire_time - 9 * MINUTE)
    await works.change(schedule.id, end_time=first.fire_time)
    await works.tick()
    before, *made = await works.runs(schedule)
    assert (before.id, before.state, before.cancel_time is not None) == (first.id, "RUNNING", cancelled)
    assert [run.state for run in made] == states
    assert [run.skip_reason for run in made] == reasons


async def test_a_run_that_no_worker_has_gives_way_at_once(works: Clockwork) -> None:
    schedule = await works.due(overlap_policy=P.CANCEL_OTHER)
    await works.tick()
    (first,) = await works.runs(schedule)
    await works.change_run(first.id, fire_time=first.fire_time - 9 * MINUTE)
    await works.rewind(schedule, MINUTE)
    await works.tick()
    assert await works.states(schedule) == ["CANCELLED", "QUEUED"]


async def test_what_was_missed_is_made_as_far_as_the_window_reaches(works: Clockwork) -> None:
    span = timedelta(hours=1)
    schedule = await works.due(
        span, timing=Timing(cron_expression="*/5 * * * *"), catch_up_window=timedelta(minutes=22)
    )
    since = works.now - span
    previewed = await works.schedules.preview(owner(schedule), schedule.id, 100, since)
    await works.tick()
    made = await works.runs(schedule)
    now = made[-1].create_time
    due = [fire.fire_time for fire in previewed if fire.fire_time <= now]
    assert [run.fire_time for run in made] == [fire for fire in due if fire >= now - timedelta(minutes=22)]
    assert (await works.read(schedule)).missed_fires == len(due) - len(made) > 0
    await works.tick()
    assert len(await works.runs(schedule)) == len(made)


async def test_overlap_decides_about_what_is_caught_up(works: Clockwork) -> None:
    schedule = await works.due(
        timedelta(minutes=12), timing=Timing(interval=5 * MINUTE, anchor=works.now), overlap_policy=P.SKIP
    )
    await works.tick()
    assert await works.states(schedule) == ["QUEUED", "SKIPPED", "SKIPPED"]


async def test_many_fires_of_one_schedule_take_many_looks(works: Clockwork) -> None:
    schedule = await works.due(timedelta(seconds=130), timing=Timing(interval=timedelta(seconds=1)))
    await works.tick()
    made = await works.runs(schedule)
    assert len(made) >= 130
    assert all(b.fire_time - a.fire_time == timedelta(seconds=1) for a, b in pairwise(made))


async def test_a_schedule_ends_with_its_last_fire(works: Clockwork) -> None:
    schedule = await works.due(5 * MINUTE, remaining_runs=3)
    await works.tick()
    assert len(await works.runs(schedule)) == 3
    row = await works.read(schedule)
    assert (row.state, row.remaining_runs, row.next_fire_time, row.next_due_time) == ("ENDED", 0, None, None)
