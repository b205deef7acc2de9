"""Backfills in a caller's transaction, under row-level security.

Whoever changes a backfill holds the row of its schedule, as the tick does that makes its fires: what a transaction has
read of either stays so until its end.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.identity import Caller
from services.scheduler.domain.backfills import Backfill, BackfillState
from services.scheduler.domain.errors import backfill_not_found
from services.scheduler.store import notes
from services.scheduler.store.rows import backfill_of
from services.scheduler.store.tables import backfills, schedules
from services.scheduler.usecases.ports import NewBackfill

_NOW = sa.func.clock_timestamp()
_BEFORE = timedelta(microseconds=1)
_BACKFILL_BY_ID = sa.select(backfills).where(
    backfills.c.id == sa.bindparam("backfill_id", type_=backfills.c.id.type)
)
_LOCKED_SCHEDULE_OF = (
    sa.select(schedules.c.id)
    .where(
        schedules.c.id
        == sa.select(backfills.c.schedule_id)
        .where(backfills.c.id == sa.bindparam("backfill_id", type_=backfills.c.id.type))
        .scalar_subquery()
    )
    .with_for_update()
)


class TenantBackfills:
    """See `usecases.ports.SchedulerTransaction`."""

    _connection: AsyncConnection
    _caller: Caller

    async def count_backfills(self, user_id: UUID) -> int:
        """How many backfills of an owner's are at work."""
        query = sa.select(sa.func.count()).where(
            backfills.c.user_id == user_id, backfills.c.state == BackfillState.RUNNING.value
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def insert_backfill(self, new: NewBackfill) -> None:
        """Makes a backfill, of which nothing is done yet."""
        await notes.schedules_changed(self._connection)
        await self._connection.execute(
            sa.insert(backfills).values(
                id=new.id,
                organization_id=self._caller.organization_id,
                user_id=new.user_id,
                schedule_id=new.schedule_id,
                start_time=new.start_time,
                end_time=new.end_time,
                overlap_policy=new.overlap_policy.value,
                state=BackfillState.RUNNING.value,
                handled_until=new.start_time - _BEFORE,
            )
        )

    async def get_backfill(self, backfill_id: UUID, *, lock: bool = False) -> Backfill:
        """Returns a backfill; with `lock` its schedule is locked: nobody makes fires of either meanwhile."""
        if lock:
            await self._connection.execute(_LOCKED_SCHEDULE_OF, {"backfill_id": backfill_id})
        row = (await self._connection.execute(_BACKFILL_BY_ID, {"backfill_id": backfill_id})).one_or_none()
        if row is None:
            raise backfill_not_found(backfill_id)
        return backfill_of(row)

    async def list_backfills(self, schedule_id: UUID, before: UUID | None, limit: int) -> list[Backfill]:
        """Returns the backfills of a schedule, the newest first."""
        query = (
            sa.select(backfills)
            .where(backfills.c.schedule_id == schedule_id)
            .order_by(backfills.c.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(backfills.c.id < before)
        return [backfill_of(row) for row in await self._connection.execute(query)]

    async def cancel_backfill(self, backfill_id: UUID) -> None:
        """Ends a backfill that is not over."""
        await self._connection.execute(
            sa.update(backfills)
            .where(backfills.c.id == backfill_id, backfills.c.state == BackfillState.RUNNING.value)
            .values(state=BackfillState.CANCELLED.value, complete_time=_NOW)
        )
