"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.db.idempotency import purge_expired
from services.scheduler.domain.runs import Claim, Failure, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store import claims, firing
from services.scheduler.store.tables import idempotency_keys, runs, tasks
from services.scheduler.usecases.firing.ports import StalePrompt
from services.scheduler.usecases.worker.ports import Renewal

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


class RunQueries:
    """See `usecases.worker.ports.RunQueue`."""

    def __init__(self, database: Database, *, lease_life: timedelta = claims.LEASE_LIFE) -> None:
        """Args: database: the scheduler schema; lease_life: how long a lease lives without being renewed."""
        self._database = database
        self._lease_life = lease_life

    async def claim(self, holder: str, limit: int) -> list[Claim]:
        """Takes over runs whose worker died, then takes runs that wait."""
        async with self._database.system() as connection:
            return await claims.claim(connection, holder, limit, self._lease_life)

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Renews leases, on a connection of its own."""
        async with self._database.dedicated_system() as connection:
            return await claims.renew(connection, held, self._lease_life)

    async def note_session(self, claim: Claim, session_id: UUID) -> None:
        """Records the session of the attempt."""
        async with self._database.system() as connection:
            await claims.note_session(connection, claim, session_id)

    async def note_turn(self, claim: Claim, turn_id: UUID) -> None:
        """Records the turn of the attempt."""
        async with self._database.system() as connection:
            await claims.note_turn(connection, claim, turn_id)

    async def end(self, claim: Claim, outcome: Outcome, pause: timedelta | None) -> RunState:
        """Records how the attempt ended; with a pause the run is queued again where its time allows."""
        async with self._database.system() as connection:
            return await claims.end(connection, claim, outcome, pause)

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back."""
        async with self._database.system() as connection:
            await claims.release(connection, held)


class FireQueries:
    """See `usecases.firing.ports.Fires` and `Prompts`."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[firing.FiringTransaction]:
        """Opens a transaction; it commits when its block ends without an error."""
        async with self._database.system() as connection:
            yield firing.FiringTransaction(connection)

    async def seconds_to_next(self) -> float | None:
        """How long until something is due; None if nothing will be."""
        async with self._database.system() as connection:
            return await firing.seconds_to_next(connection)

    async def stale(self, limit: int) -> list[StalePrompt]:
        """Schedules whose prompt is to be rendered, those that are due soonest first."""
        async with self._database.system() as connection:
            return await firing.stale_prompts(connection, limit)

    async def keep(self, found: StalePrompt, prompt: str | None, fault: Failure | None) -> bool:
        """Records a prompt, or why there is none; False if task or schedule have changed."""
        async with self._database.system() as connection:
            return await firing.keep_prompt(connection, found, prompt, fault)
