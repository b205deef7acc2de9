"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.db.idempotency import purge_expired
from services.scheduler.store.tables import idempotency_keys, runs, tasks

_PURGED_AT_ONCE = 100
_UNDER_WAY = sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))


class HouseKeeping:
    """Removes what has no more meaning; several replicas do not get in each other's way."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    async def purge(self) -> int:
        """Deletes expired request ids and deleted tasks without open runs, a bounded number; returns how many."""
        async with self._database.system() as connection:
            found = (
                sa.select(tasks.c.id)
                .where(tasks.c.delete_time.is_not(None), sa.not_(_UNDER_WAY))
                .limit(_PURGED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            removed = await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))
            return removed.rowcount + await purge_expired(connection, idempotency_keys)
