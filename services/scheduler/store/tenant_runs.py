"""Runs in a caller's transaction, under row-level security."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.kernel.identity import Caller
from services.scheduler.domain.errors import run_not_found
from services.scheduler.domain.runs import Run
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, facts
from services.scheduler.store.endings import Ending
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.run_rows import UNREAD_CONTENT, attempt_of, content_columns, run_of
from services.scheduler.store.tables import run_attempts, runs
from services.scheduler.usecases.ports import NewRun, RunFilter, ShownRun

_NOW = sa.func.clock_timestamp()
_LARGE: Final = frozenset({"prompt", "variables", "result_text", "structured_output_json"})
_EMPTY = [
    *UNREAD_CONTENT,
    sa.literal("").label("result_text"),
    sa.literal("").label("structured_output_json"),
]
_LISTED = sa.select(*(column for column in runs.c if column.name not in _LARGE), *_EMPTY)
# Built once: building it for each call costs more than running it.
_RUN_BY_ID = sa.select(runs).where(runs.c.id == sa.bindparam("run_id", type_=runs.c.id.type))
_LOCKED_RUN_BY_ID = _RUN_BY_ID.with_for_update()
_OPEN = sa.select(runs.c.id, runs.c.state).where(runs.c.end_time.is_(None))
_LOCKED_OPEN = _OPEN.order_by(runs.c.id).with_for_update(key_share=True)
_ASK_END = sa.update(runs).values(
    cancel_time=sa.func.coalesce(runs.c.cancel_time, _NOW), update_time=_NOW, version=runs.c.version + 1
)
_ATTEMPTS_OF_VERSION = (
    sa.select(run_attempts)
    .select_from(runs.outerjoin(run_attempts, run_attempts.c.run_id == runs.c.id))
    .where(
        runs.c.id == sa.bindparam("run_id", type_=runs.c.id.type),
        runs.c.version == sa.bindparam("version", type_=runs.c.version.type),
    )
    .order_by(run_attempts.c.number)
)


class TenantRuns:
    """See `usecases.ports.SchedulerTransaction`."""

    def __init__(self, connection: AsyncConnection, caller: Caller) -> None:
        """Args: connection: a tenant's transaction; caller: whose."""
        self._connection = connection
        self._caller = caller

    async def insert_run(self, new: NewRun) -> None:
        """Makes a run, and tells workers of it."""
        await self._connection.execute(
            sa.insert(runs).values(
                id=new.id,
                organization_id=self._caller.organization_id,
                user_id=new.user_id,
                task_id=new.task_id,
                state=RunState.QUEUED.value,
                due_time=_NOW,
                available_time=_NOW,
                retry_of=new.retry_of,
                **content_columns(new.content),
            )
        )
        await facts.add_queued(self._connection, self._caller.organization_id, 1)

    async def get_run(self, run_id: UUID, *, lock: bool = False) -> Run:
        """Returns a run; with `lock` no worker writes to it until the end of the transaction.

        Its schedule is locked before it: it goes on when the run ends.
        """
        if lock:
            await endings.lock_schedules(self._connection, [run_id])
        query = _LOCKED_RUN_BY_ID if lock else _RUN_BY_ID
        row = (await self._connection.execute(query, {"run_id": run_id})).one_or_none()
        if row is None:
            raise run_not_found(run_id)
        return run_of(row)

    async def list_runs(self, wanted: RunFilter, before: UUID | None, limit: int) -> list[Run]:
        """Returns runs without what may be large, the newest first."""
        query = _LISTED.order_by(runs.c.id.desc()).limit(limit)
        if wanted.user_id is not None:
            query = query.where(runs.c.user_id == wanted.user_id)
        if wanted.task_id is not None:
            query = query.where(runs.c.task_id == wanted.task_id)
        if wanted.schedule_id is not None:
            query = query.where(runs.c.schedule_id == wanted.schedule_id)
        if wanted.backfill_id is not None:
            query = query.where(runs.c.backfill_id == wanted.backfill_id)
        if wanted.states:
            query = query.where(runs.c.state.in_(wanted.states))
        if before is not None:
            query = query.where(runs.c.id < before)
        return [run_of(row) for row in await self._connection.execute(query)]

    async def show_run(self, run_id: UUID) -> ShownRun:
        """Returns a run with its attempts, as they stood at one moment.

        Each statement has a snapshot of its own, and a worker may write between two of them. Whoever changes an attempt
        raises the run's version in the same transaction: attempts that were read beside the same version belong to it.
        """
        while True:
            run = await self.get_run(run_id)
            values = {"run_id": run_id, "version": run.version}
            rows = (await self._connection.execute(_ATTEMPTS_OF_VERSION, values)).all()
            if rows:
                return ShownRun(run, [attempt_of(row) for row in rows if row.number is not None])

    async def cancel_run(self, run_id: UUID, *, at_once: bool) -> None:
        """Asks for the end of a run that is locked; `at_once` for one that no worker has: it is over then."""
        note(self._connection, RUNS_CHANGED)
        await self._connection.execute(_ASK_END.where(runs.c.id == run_id))
        if at_once:
            await endings.end(self._connection, [Ending(run_id, RunState.CANCELLED)])

    async def cancel_runs(
        self, of: sa.ColumnElement[bool], among: Collection[RunState], *, limit: int | None = None
    ) -> None:
        """Asks for the end of open runs, and ends those that wait; their schedules must be locked.

        Workers are told of those that go on waiting: while they are locked here nobody finds them.

        Args:
            of: Which runs.
            among: The states in which they are to end; one that is RUNNING is left to its worker, which hears of it.
            limit: How many at most; None for all.
        """
        note(self._connection, RUNS_CHANGED)
        wanted = runs.c.state.in_([state.value for state in among])
        found = (await self._connection.execute(_LOCKED_OPEN.where(of, wanted).limit(limit))).all()
        states = {row.id: RunState(row.state) for row in found}
        ids = sa.bindparam("ids", list(states), type_=ARRAY(sa.UUID()))
        await self._connection.execute(_ASK_END.where(runs.c.id == sa.any_(ids)))
        over = [run_id for run_id, state in states.items() if state is not RunState.RUNNING]
        await endings.end(self._connection, [Ending(run_id, RunState.CANCELLED) for run_id in over])
        hidden = sum(row.state == RunState.QUEUED.value and row.id not in states for row in found)
        await facts.add_queued(self._connection, self._caller.organization_id, hidden)
