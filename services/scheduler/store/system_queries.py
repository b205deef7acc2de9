"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.db.idempotency import purge_expired
from services.scheduler.store.tables import idempotency_keys, tasks

_PURGED_AT_ONCE = 100


class HouseKeeping:
    """Removes what has no more meaning; several replicas do not get in each other's way."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    async def purge(self) -> int:
        """Deletes expired request ids and deleted tasks, a bounded number; returns how many."""
        async with self._database.system() as connection:
            found = (
                sa.select(tasks.c.id)
                .where(tasks.c.delete_time.is_not(None))
                .limit(_PURGED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            removed = await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))
            return removed.rowcount + await purge_expired(connection, idempotency_keys)
