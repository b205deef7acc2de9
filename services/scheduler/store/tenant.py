"""A caller's transaction: what it reads, and what it writes, under row-level security."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.db.idempotency import KEPT_FOR, once
from services.kernel.identity import Caller
from services.scheduler.domain.entities import Task, TaskContent
from services.scheduler.domain.errors import schedule_not_found, task_not_found
from services.scheduler.domain.schedules import Schedule, ScheduleContent, Standing
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, notes
from services.scheduler.store.rows import prompt_columns, schedule_columns, schedule_of, task_columns, task_of
from services.scheduler.store.tables import idempotency_keys, runs, schedules, tasks
from services.scheduler.store.tenant_backfills import TenantBackfills
from services.scheduler.store.tenant_runs import TenantRuns
from services.scheduler.store.webhooks import TenantWebhooks
from services.scheduler.usecases.ports import NewSchedule, ScheduleFilter, TaskFilter

_NOW = sa.func.clock_timestamp()
# Built once: building it for each call costs more than running it.
_TASK_BY_ID = sa.select(tasks).where(
    tasks.c.id == sa.bindparam("task_id", type_=tasks.c.id.type), tasks.c.delete_time.is_(None)
)
# Whoever holds a schedule and makes a run of it takes a key share of the task: no lock on a task may be in its way.
_LOCKED_TASK_BY_ID = _TASK_BY_ID.with_for_update(key_share=True)
_SCHEDULE_BY_ID = sa.select(schedules).where(
    schedules.c.id == sa.bindparam("schedule_id", type_=schedules.c.id.type)
)
_LOCKED_SCHEDULE_BY_ID = _SCHEDULE_BY_ID.with_for_update()
_SCHEDULES_IN_ORDER = sa.select(schedules.c.id).order_by(schedules.c.id)
_LOCKED_SCHEDULES = _SCHEDULES_IN_ORDER.with_for_update()
_LOCKED_TO_CHANGE = _SCHEDULES_IN_ORDER.with_for_update(key_share=True)


class TenantTransaction(TenantRuns, TenantBackfills, TenantWebhooks):
    """See `usecases.ports.SchedulerTransaction`."""

    async def once(
        self, method: str, request_id: str, request: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Does a mutation once for each request id."""
        return await once(
            self._connection,
            idempotency_keys,
            caller_id=self._caller.user_id,
            organization_id=self._caller.organization_id,
            method=method,
            request_id=request_id,
            request=request,
            expire_after=KEPT_FOR,
            run=run,
        )

    async def insert_task(self, task_id: UUID, content: TaskContent) -> None:
        """Creates a task of the caller's."""
        await self._connection.execute(
            sa.insert(tasks).values(
                id=task_id,
                organization_id=self._caller.organization_id,
                user_id=self._caller.user_id,
                **task_columns(content),
            )
        )

    async def update_task(self, task_id: UUID, content: TaskContent) -> None:
        """Changes a task, and with it its version; the prompts of its schedules are rendered anew before they fire.

        Locks, behind the task, its schedules in the order of their ids, as ends of runs do.
        """
        await self._connection.execute(
            sa.update(tasks)
            .where(tasks.c.id == task_id)
            .values(**task_columns(content), version=tasks.c.version + 1, update_time=_NOW)
        )
        of_task = schedules.c.task_id == task_id
        await self._connection.execute(_LOCKED_TO_CHANGE.where(of_task))
        await self._connection.execute(sa.update(schedules).where(of_task).values(prompt_stale=True))
        await notes.schedules_changed(self._connection)

    async def mark_task_deleted(self, task_id: UUID) -> None:
        """Makes a task invisible, removes its schedules and cancels its runs; its other rows are removed later.

        Locks, behind the task, its schedules and its open runs; those that are over are not touched, however many. Of
        those that wait a bounded number ends here, and the rest in the background: no worker takes them any more.
        """
        of_task, mine = schedules.c.task_id == task_id, runs.c.task_id == task_id
        await self._connection.execute(_LOCKED_SCHEDULES.where(of_task))
        await self.cancel_runs(mine, [RunState.RUNNING])
        await self.cancel_runs(mine, [RunState.QUEUED, RunState.PENDING], limit=endings.AT_ONCE)
        await self._connection.execute(sa.delete(schedules).where(of_task))
        await self._connection.execute(sa.update(tasks).where(tasks.c.id == task_id).values(delete_time=_NOW))

    async def get_task(self, task_id: UUID, *, lock: bool = False) -> Task:
        """Returns a task; with `lock` nobody else changes it until the end of the transaction."""
        query = _LOCKED_TASK_BY_ID if lock else _TASK_BY_ID
        row = (await self._connection.execute(query, {"task_id": task_id})).one_or_none()
        if row is None:
            raise task_not_found(task_id)
        return task_of(row)

    async def list_tasks(self, wanted: TaskFilter, before: UUID | None, limit: int) -> list[Task]:
        """Returns tasks, the newest first."""
        query = sa.select(tasks).where(tasks.c.delete_time.is_(None)).order_by(tasks.c.id.desc()).limit(limit)
        if wanted.user_id is not None:
            query = query.where(tasks.c.user_id == wanted.user_id)
        if before is not None:
            query = query.where(tasks.c.id < before)
        if wanted.name_contains:
            query = query.where(tasks.c.name.icontains(wanted.name_contains, autoescape=True))
        return [task_of(row) for row in await self._connection.execute(query)]

    async def count_schedules(self, user_id: UUID) -> int:
        """How many schedules an owner has."""
        query = sa.select(sa.func.count()).where(schedules.c.user_id == user_id)
        return int((await self._connection.execute(query)).scalar_one())

    async def insert_schedule(self, new: NewSchedule) -> None:
        """Creates a schedule."""
        await self._connection.execute(
            sa.insert(schedules).values(
                id=new.id,
                organization_id=self._caller.organization_id,
                user_id=new.user_id,
                task_id=new.task_id,
                **prompt_columns(new.prompt),
                **schedule_columns(new.content, new.standing),
            )
        )
        await notes.schedules_changed(self._connection)

    async def update_schedule(
        self,
        schedule_id: UUID,
        content: ScheduleContent,
        standing: Standing,
        note: str,
        prompt: str | None = None,
    ) -> None:
        """Changes a schedule, and with it its version; with a prompt that of its runs."""
        values = {} if prompt is None else prompt_columns(prompt)
        await self._connection.execute(
            sa.update(schedules)
            .where(schedules.c.id == schedule_id)
            .values(
                **schedule_columns(content, standing),
                note=note,
                version=schedules.c.version + 1,
                update_time=_NOW,
                **values,
            )
        )
        await notes.schedules_changed(self._connection)

    async def delete_schedule(self, schedule_id: UUID) -> None:
        """Removes a schedule that is locked, and cancels what it holds back: nobody else would ever let that go.

        Its other runs are not touched, however many it has made: they go on naming it.
        """
        await self.cancel_runs(runs.c.schedule_id == schedule_id, [RunState.PENDING])
        await self._connection.execute(sa.delete(schedules).where(schedules.c.id == schedule_id))

    async def get_schedule(self, schedule_id: UUID, *, lock: bool = False) -> Schedule:
        """Returns a schedule; with `lock` nobody else changes it or makes its fires meanwhile."""
        query = _LOCKED_SCHEDULE_BY_ID if lock else _SCHEDULE_BY_ID
        row = (await self._connection.execute(query, {"schedule_id": schedule_id})).one_or_none()
        if row is None:
            raise schedule_not_found(schedule_id)
        return schedule_of(row)

    async def list_schedules(self, wanted: ScheduleFilter, before: UUID | None, limit: int) -> list[Schedule]:
        """Returns schedules, the newest first."""
        query = sa.select(schedules).order_by(schedules.c.id.desc()).limit(limit)
        if wanted.user_id is not None:
            query = query.where(schedules.c.user_id == wanted.user_id)
        if wanted.task_id is not None:
            query = query.where(schedules.c.task_id == wanted.task_id)
        if wanted.states:
            query = query.where(schedules.c.state.in_(wanted.states))
        if before is not None:
            query = query.where(schedules.c.id < before)
        return [schedule_of(row) for row in await self._connection.execute(query)]

    async def now(self) -> datetime:
        """The database's time."""
        moment: datetime = (await self._connection.execute(sa.select(_NOW))).scalar_one()
        return moment


class TenantStore:
    """See `usecases.ports.SchedulerStore`."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    @asynccontextmanager
    async def begin(self, caller: Caller) -> AsyncIterator[TenantTransaction]:
        """Opens a transaction that sees what the caller may see; commits when its block ends without an error."""
        async with self._database.tenant(caller) as connection:
            yield TenantTransaction(connection, caller)
