"""Schedules on a real database, with ticks that a test makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.identity import Caller
from services.kernel.ids import Uuid7Source
from services.kernel.testing import a_caller
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import Schedule, ScheduleContent, Timing, standing_of
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.store.system_queries import FireQueries
from services.scheduler.store.tables import backfills, runs, schedules, tasks
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.firing import Backfiller, SchedulePrompts, Ticker
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks, UpdateTask

from .working import KEEPER, content

MINUTE = timedelta(minutes=1)


class Clockwork:
    """Where schedules fire: those of a test a second before `now`, and each minute before and after."""

    def __init__(self, database: Database) -> None:
        store, self.renderer = TenantStore(database), TemplateProcesses()
        self.database = database
        self.tasks = Tasks(store, Uuid7Source(), self.renderer, KEEPER)
        self.schedules = Schedules(store, Uuid7Source(), self.renderer)
        self.queries = FireQueries(database)
        self.now = datetime.now(UTC)

    def ticker(self, **options: Any) -> Ticker:
        """A replica's ticker."""
        return Ticker(self.queries, Uuid7Source(), SystemClock(), **options)

    def backfiller(self) -> Backfiller:
        """What fills the past, of a replica."""
        return Backfiller(self.queries, Uuid7Source(), SystemClock())

    def prompts(self, rendered: Callable[[], None] = lambda: None) -> SchedulePrompts:
        """A replica's renderer of prompts."""
        return SchedulePrompts(self.queries, self.renderer, SystemClock(), rendered)

    async def tick(self) -> None:
        """Makes all that is due."""
        ticker, backfiller = self.ticker(), self.backfiller()
        while await ticker.tick() or await backfiller.fill():
            pass

    async def schedule(
        self,
        owner: Caller | None = None,
        task_id: UUID | None = None,
        task: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Schedule:
        """Makes a schedule, each minute and of a new task by default."""
        owner = owner or a_caller()
        if task_id is None:
            task_id = (await self.tasks.create(owner, content(**(task or {})), "")).id
        asked = {
            "name": "",
            "timing": Timing(interval=MINUTE, anchor=self.now - timedelta(seconds=1)),
            "variables": {},
            "overlap_policy": OverlapPolicy.ALLOW_ALL,
            "catch_up_window": timedelta(days=1),
            "pause_on_failure": False,
            "remaining_runs": None,
            **values,
        }
        return await self.schedules.create(owner, task_id, ScheduleContent(**asked), "")

    async def retask(self, schedule: Schedule, **values: Any) -> None:
        """Changes the task of a schedule."""
        await self.tasks.update(owner(schedule), UpdateTask(schedule.task_id, values, "", ""))

    async def rewind(self, schedule: Schedule, by: timedelta) -> None:
        """Lets a schedule stand where it stood `by` ago, as if nobody had looked since."""
        standing = standing_of(schedule.id, schedule.content, self.now - by)
        await self.change(
            schedule.id,
            handled_until=standing.handled_until,
            next_fire_time=standing.next_fire_time,
            next_due_time=standing.next_due_time,
        )

    async def due(self, by: timedelta = MINUTE, **values: Any) -> Schedule:
        """Makes a schedule whose fires since `by` ago are due."""
        made = await self.schedule(**values)
        await self.rewind(made, by)
        return made

    async def change(self, schedule_id: UUID, **values: Any) -> None:
        """Changes a row behind everybody's back."""
        async with self.database.system() as connection:
            await connection.execute(
                sa.update(schedules).where(schedules.c.id == schedule_id).values(**values)
            )

    async def spoil(self, schedule: Schedule) -> None:
        """Lets the task of a schedule be one that this version cannot read."""
        async with self.database.system() as connection:
            await connection.execute(
                sa.update(tasks).where(tasks.c.id == schedule.task_id).values(retry_policy={})
            )

    async def change_run(self, run_id: UUID, **values: Any) -> None:
        """Changes a run behind everybody's back."""
        async with self.database.system() as connection:
            await connection.execute(sa.update(runs).where(runs.c.id == run_id).values(**values))

    async def begin(self, run_id: UUID) -> None:
        """Lets a worker have a run."""
        later = sa.func.clock_timestamp() + timedelta(minutes=5)
        await self.change_run(run_id, state="RUNNING", lease_holder="w", lease_expire_time=later)

    async def read(self, schedule: Schedule) -> Any:
        """The row of a schedule."""
        async with self.database.system() as connection:
            return (await connection.execute(sa.select(schedules).where(schedules.c.id == schedule.id))).one()

    async def runs(self, schedule: Schedule) -> Sequence[Any]:
        """The rows of a schedule's runs, in the order of their fires."""
        query = sa.select(runs).where(runs.c.schedule_id == schedule.id).order_by(runs.c.fire_time, runs.c.id)
        async with self.database.system() as connection:
            return (await connection.execute(query)).all()

    async def states(self, schedule: Schedule) -> list[str]:
        """The states of a schedule's runs."""
        return [run.state for run in await self.runs(schedule)]

    async def until(self, schedule: Schedule, number: int) -> Sequence[Any]:
        """Waits for a schedule's runs."""
        async with asyncio.timeout(20):
            # The database tells nobody when it changes.
            while len(found := await self.runs(schedule)) < number:
                await asyncio.sleep(0.01)
            return found


def owner(schedule: Schedule) -> Caller:
    """The owner of a schedule."""
    return a_caller(user_id=schedule.user_id, organization_id=schedule.organization_id)


@asynccontextmanager
async def clockwork(database: Database) -> AsyncIterator[Clockwork]:
    """One without schedules."""
    async with database.system() as connection:
        for table in (runs, backfills, schedules):
            await connection.execute(sa.delete(table))
    made = Clockwork(database)
    yield made
    await made.renderer.close()
