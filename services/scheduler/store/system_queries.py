"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.kernel.db.database import note
from services.kernel.db.idempotency import purge_expired
from services.scheduler.domain.runs import Claim, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store import claims
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.tables import idempotency_keys, runs, tasks
from services.scheduler.usecases.worker.ports import Renewal

_PURGED_AT_ONCE = 100
_RUNS_PURGED_AT_ONCE = 1000
_VERSIONS = sa.select(runs.c.id, runs.c.version).where(
    runs.c.id == sa.func.any(sa.bindparam("run_ids", type_=sa.ARRAY(runs.c.id.type)))
)
_UNDER_WAY = sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))


class HouseKeeping:
    """Removes what has no more meaning; several replicas do not get in each other's way."""

    def __init__(self, database: Database, *, keep_runs: timedelta | None = None) -> None:
        """Args: database: the scheduler schema; keep_runs: how long after their end; None for ever."""
        self._database = database
        self._keep_runs = keep_runs

    async def purge(self) -> int:
        """Deletes expired request ids, deleted tasks without open runs, and runs that ended long ago.

        A bounded number; returns how many. A run's attempts go with it.
        """
        async with self._database.system() as connection:
            found = (
                sa.select(tasks.c.id)
                .where(tasks.c.delete_time.is_not(None), sa.not_(_UNDER_WAY))
                .limit(_PURGED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            removed = await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))
            old = await self._purge_runs(connection) if self._keep_runs is not None else 0
            note(connection, RUNS_CHANGED)
            return removed.rowcount + old + await purge_expired(connection, idempotency_keys)

    async def _purge_runs(self, connection: AsyncConnection) -> int:
        found = (
            sa.select(runs.c.id)
            .where(runs.c.end_time < sa.func.clock_timestamp() - sa.cast(self._keep_runs, sa.Interval))
            .order_by(runs.c.end_time)
            .limit(_RUNS_PURGED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        return (await connection.execute(sa.delete(runs).where(runs.c.id.in_(found)))).rowcount


class WatchQueries:
    """What watchers of runs ask for."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    async def versions(self, run_ids: Collection[UUID]) -> dict[UUID, int]:
        """Returns the version of each run that is there: whoever asks has read it by its watcher's rights before."""
        async with self._database.system() as connection:
            rows = await connection.execute(_VERSIONS, {"run_ids": list(run_ids)})
            return {row.id: row.version for row in rows}


class RunQueries:
    """See `usecases.worker.ports.RunQueue`."""

    def __init__(self, database: Database, *, lease_life: timedelta = claims.LEASE_LIFE) -> None:
        """Args: database: the scheduler schema; lease_life: how long a lease lives without being renewed."""
        self._database = database
        self._lease_life = lease_life

    async def claim(self, holder: str, limit: int) -> list[Claim]:
        """Takes over runs whose worker died, then takes runs that wait."""
        async with self._database.system() as connection:
            found = await claims.claim(connection, holder, limit, self._lease_life)
            if found:
                note(connection, RUNS_CHANGED)
            return found

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Renews leases, on a connection of its own."""
        async with self._database.dedicated_system() as connection:
            return await claims.renew(connection, held, self._lease_life)

    async def note_session(self, claim: Claim, session_id: UUID) -> None:
        """Records the session of the attempt."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            await claims.note_session(connection, claim, session_id)

    async def note_turn(self, claim: Claim, turn_id: UUID) -> None:
        """Records the turn of the attempt."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            await claims.note_turn(connection, claim, turn_id)

    async def end(self, claim: Claim, outcome: Outcome, pause: timedelta | None) -> RunState:
        """Records how the attempt ended; with a pause the run is queued again where its time allows."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            return await claims.end(connection, claim, outcome, pause)

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back."""
        async with self._database.system() as connection:
            await claims.release(connection, held)
