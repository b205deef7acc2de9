"""Runs in a caller's transaction, under row-level security."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.identity import Caller
from services.scheduler.domain.errors import run_not_found
from services.scheduler.domain.runs import Run, RunAttempt
from services.scheduler.domain.states import RunState
from services.scheduler.store.run_rows import attempt_of, content_columns, run_of
from services.scheduler.store.tables import run_attempts, runs
from services.scheduler.store.webhooks import enqueue
from services.scheduler.usecases.ports import NewRun, RunFilter

_NOW = sa.func.clock_timestamp()
_LARGE: Final = frozenset({"prompt", "variables", "result_text", "structured_output_json"})
_EMPTY = [
    sa.literal("").label("prompt"),
    sa.literal({}, runs.c.variables.type).label("variables"),
    sa.literal("").label("result_text"),
    sa.literal("").label("structured_output_json"),
]
_LISTED = sa.select(*(column for column in runs.c if column.name not in _LARGE), *_EMPTY)
# Built once: building it for each call costs more than running it.
_RUN_BY_ID = sa.select(runs).where(runs.c.id == sa.bindparam("run_id", type_=runs.c.id.type))
_LOCKED_RUN_BY_ID = _RUN_BY_ID.with_for_update()
_WAITING: Final = (RunState.PENDING.value, RunState.QUEUED.value)


class TenantRuns:
    """See `usecases.ports.SchedulerTransaction`."""

    def __init__(self, connection: AsyncConnection, caller: Caller) -> None:
        """Args: connection: a tenant's transaction; caller: whose."""
        self._connection = connection
        self._caller = caller

    async def insert_run(self, new: NewRun) -> None:
        """Makes a run."""
        await self._connection.execute(
            sa.insert(runs).values(
                id=new.id,
                organization_id=self._caller.organization_id,
                user_id=new.user_id,
                task_id=new.task_id,
                state=RunState.QUEUED.value,
                due_time=_NOW,
                available_time=_NOW,
                **content_columns(new.content),
            )
        )

    async def get_run(self, run_id: UUID, *, lock: bool = False) -> Run:
        """Returns a run; with `lock` no worker writes to it until the end of the transaction."""
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
        if wanted.states:
            query = query.where(runs.c.state.in_(wanted.states))
        if before is not None:
            query = query.where(runs.c.id < before)
        return [run_of(row) for row in await self._connection.execute(query)]

    async def list_attempts(self, run_id: UUID) -> list[RunAttempt]:
        """Returns the attempts at a run, in their order."""
        query = sa.select(run_attempts).where(run_attempts.c.run_id == run_id).order_by(run_attempts.c.number)
        return [attempt_of(row) for row in await self._connection.execute(query)]

    async def cancel_run(self, run_id: UUID, *, at_once: bool) -> None:
        """Asks for the end of a run; `at_once` for one that no worker has: it is over then."""
        over = {"state": RunState.CANCELLED.value, "end_time": _NOW} if at_once else {}
        await self._connection.execute(
            sa.update(runs)
            .where(runs.c.id == run_id)
            .values(cancel_time=sa.func.coalesce(runs.c.cancel_time, _NOW), **over)
        )
        await enqueue(self._connection, [run_id])

    async def cancel_runs_of(self, task_id: UUID) -> None:
        """Asks for the end of all runs of a task."""
        waiting = runs.c.state.in_(_WAITING)
        changed = await self._connection.execute(
            sa.update(runs)
            .where(runs.c.task_id == task_id, sa.or_(waiting, runs.c.state == RunState.RUNNING.value))
            .values(
                cancel_time=sa.func.coalesce(runs.c.cancel_time, _NOW),
                state=sa.case((waiting, RunState.CANCELLED.value), else_=runs.c.state),
                end_time=sa.case((waiting, _NOW), else_=runs.c.end_time),
            )
            .returning(runs.c.id)
        )
        await enqueue(self._connection, [row.id for row in changed])
