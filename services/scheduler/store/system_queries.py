"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.db.idempotency import purge_expired
from services.scheduler.domain.runs import Claim, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store import claims
from services.scheduler.store.facts import OUTBOX, TASK_RUNS
from services.scheduler.store.tables import idempotency_keys, outbox, runs, tasks
from services.scheduler.usecases.worker.ports import Renewal

_PURGED_AT_ONCE = 100
_UNDER_WAY = sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))

# Of tasks that have as many runs under way as they may have, none is claimable, however long it waits.
_FULL_TASKS = (
    sa.select(tasks.c.id)
    .join(runs, runs.c.task_id == tasks.c.id)
    .where(runs.c.state == RunState.RUNNING.value, tasks.c.max_concurrent_runs > 0)
    .group_by(tasks.c.id)
    .having(sa.func.count() >= tasks.c.max_concurrent_runs)
)
_OLDEST = sa.select(
    sa.func.extract("epoch", sa.func.clock_timestamp() - sa.func.min(runs.c.available_time))
).where(
    runs.c.state == RunState.QUEUED.value,
    runs.c.task_id.not_in(_FULL_TASKS),
)

_TOLD = (
    sa.select(
        outbox.c.publish_time >= sa.func.clock_timestamp() - sa.bindparam("earliest", type_=sa.Interval)
    )
    .where(
        outbox.c.topic == TASK_RUNS.name,
        outbox.c.publish_time <= sa.func.clock_timestamp() - sa.bindparam("latest", type_=sa.Interval),
    )
    .order_by(outbox.c.id.desc())
    .limit(1)
)


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

    async def purge_facts(self, *, unwanted: bool) -> int:
        """Deletes facts that have had their time, a bounded number; returns how many. See `Outbox.purge`."""
        async with self._database.system() as connection:
            return await OUTBOX.purge(connection, unwanted=unwanted)


class WaitingQueries:
    """See `usecases.watchdog.WaitingRuns`."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    async def was_told(self, earliest_seconds: float, latest_seconds: float) -> bool:
        """Looks at the newest fact that is not too new."""
        values = {
            "earliest": timedelta(seconds=earliest_seconds),
            "latest": timedelta(seconds=latest_seconds),
        }
        async with self._database.system() as connection:
            return bool((await connection.execute(_TOLD, values)).scalar_one_or_none())

    async def oldest_seconds(self) -> float:
        """Reads all that is queued, so not often: some 40 ms for 100,000 runs."""
        async with self._database.system() as connection:
            return max(0.0, float((await connection.execute(_OLDEST)).scalar_one() or 0.0))


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
