"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.kernel.db.database import note
from services.kernel.db.idempotency import purge_expired
from services.kernel.errors import ServiceError
from services.scheduler.domain.runs import UNREADABLE, Claim, Failure
from services.scheduler.domain.states import RunState
from services.scheduler.domain.webhooks import DeliveryState
from services.scheduler.store import claims, endings, firing, webhook_claims
from services.scheduler.store.facts import OUTBOX, TASK_RUNS
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.tables import idempotency_keys, outbox, runs, tasks
from services.scheduler.store.webhook_tables import webhook_deliveries
from services.scheduler.usecases.firing.ports import StalePrompt
from services.scheduler.usecases.webhook_ports import Answer, DeliveryClaim, Outlook
from services.scheduler.usecases.worker.ports import Claimed, Progress, Recorded, Renewal

_log = structlog.get_logger(__name__)

_PURGED_AT_ONCE = 100
_RUNS_PURGED_AT_ONCE = 1000
_VERSIONS = sa.select(runs.c.id, runs.c.version).where(
    runs.c.id == sa.func.any(sa.bindparam("run_ids", type_=sa.ARRAY(runs.c.id.type)))
)
_UNDER_WAY = sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))
# What its last runs have to say is still told.
_UNTOLD = sa.exists().where(
    webhook_deliveries.c.task_id == tasks.c.id,
    webhook_deliveries.c.state == DeliveryState.PENDING.value,
)

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

    def __init__(self, database: Database, *, keep_runs: timedelta | None = None) -> None:
        """Args: database: the scheduler schema; keep_runs: how long after their end; None for ever."""
        self._database = database
        self._keep_runs = keep_runs

    async def purge(self) -> int:
        """Deletes what has no more meaning, a bounded number; returns how many.

        These are expired request ids, deleted tasks of which nothing is under way, runs that ended long ago with their
        attempts, and old deliveries of webhooks.
        """
        async with self._database.system() as connection:
            found = (
                sa.select(tasks.c.id)
                .where(tasks.c.delete_time.is_not(None), sa.not_(_UNDER_WAY), sa.not_(_UNTOLD))
                .limit(_PURGED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            removed = await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))
            old = await self._purge_runs(connection) if self._keep_runs is not None else 0
            note(connection, RUNS_CHANGED)
            told = await webhook_claims.purge(connection, _PURGED_AT_ONCE)
            return removed.rowcount + old + told + await purge_expired(connection, idempotency_keys)

    async def _purge_runs(self, connection: AsyncConnection) -> int:
        found = (
            sa.select(runs.c.id)
            .where(runs.c.end_time < sa.func.clock_timestamp() - sa.cast(self._keep_runs, sa.Interval))
            .order_by(runs.c.end_time)
            .limit(_RUNS_PURGED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        return (await connection.execute(sa.delete(runs).where(runs.c.id.in_(found)))).rowcount

    async def purge_facts(self, *, unwanted: bool) -> int:
        """Deletes facts that have had their time, a bounded number; returns how many. See `Outbox.purge`."""
        async with self._database.system() as connection:
            return await OUTBOX.purge(connection, unwanted=unwanted)


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

    def __init__(
        self, database: Database, *, lease_life: timedelta = claims.LEASE_LIFE, per_user: int = 0
    ) -> None:
        """Composes the queries.

        Args:
            database: The scheduler schema.
            lease_life: How long a lease lives without being renewed.
            per_user: How many runs of one user may be under way at once; 0 for no limit.
        """
        self._database = database
        self._lease_life = lease_life
        self._per_user = per_user

    async def claim(self, holder: str, limit: int) -> Claimed:
        """Takes over runs whose worker died; if there are none it takes runs that wait. Ends what cannot be read."""
        async with self._database.system() as connection:
            claimed, unreadable = await claims.claim(
                connection, holder, limit, per_user=self._per_user, life=self._lease_life
            )
            if claimed.runs:
                note(connection, RUNS_CHANGED)
        if unreadable:
            try:
                steps = [Progress(run, run.session_id, run.turn_id, UNREADABLE) for run in unreadable]
                await self.record(steps)
            except ServiceError as error:
                # The others are this worker's by now.
                _log.warning("what cannot be read has not ended; its lease runs out", reason=error.reason)
        return claimed

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Renews leases, on a connection of its own."""
        async with self._database.dedicated_system() as connection:
            return await claims.renew(connection, held, self._lease_life)

    async def record(self, steps: Sequence[Progress]) -> list[Recorded]:
        """Records how far attempts have come."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            return await claims.record(connection, steps)

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back."""
        async with self._database.system() as connection:
            await claims.release(connection, held)

    async def promote_forgotten(self) -> int:
        """Queues runs that are held back behind nothing."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            return await endings.promote_forgotten(connection)


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

    async def seconds_to_fire(self, aside: Sequence[UUID]) -> float | None:
        """How long until a schedule is due, `aside` left out; None if none will be."""
        async with self._database.system() as connection:
            return await firing.seconds_to_fire(connection, aside)

    async def seconds_to_backfill(self, aside: Sequence[UUID]) -> float | None:
        """The same of backfills."""
        async with self._database.system() as connection:
            return await firing.seconds_to_backfill(connection, aside)

    async def stale(self, limit: int) -> list[StalePrompt]:
        """Schedules whose prompt is to be rendered, those that are due soonest first."""
        async with self._database.system() as connection:
            return await firing.stale_prompts(connection, limit)

    async def keep(self, found: StalePrompt, prompt: str | None, fault: Failure | None) -> bool:
        """Records a prompt, or why there is none; False if task or schedule have changed."""
        async with self._database.system() as connection:
            return await firing.keep_prompt(connection, found, prompt, fault)


class WebhookQueries:
    """See `usecases.webhook_ports.DeliveryQueue`."""

    def __init__(self, database: Database, *, lease_life: timedelta = webhook_claims.LEASE_LIFE) -> None:
        """Args: database: the scheduler schema; lease_life: how long a delivery is held for its attempt."""
        self._database = database
        self._lease_life = lease_life

    async def claim(self, holder: str, limit: int) -> list[DeliveryClaim]:
        """Takes deliveries that are due."""
        async with self._database.system() as connection:
            return await webhook_claims.claim(connection, holder, limit, life=self._lease_life)

    async def finish(self, claim: DeliveryClaim, answer: Answer, pause: timedelta | None) -> DeliveryState:
        """Records what came of an attempt."""
        async with self._database.system() as connection:
            return await webhook_claims.finish(connection, claim, answer, pause)

    async def release(self, held: Sequence[DeliveryClaim]) -> None:
        """Gives deliveries back."""
        async with self._database.system() as connection:
            await webhook_claims.release(connection, held)

    async def outlook(self) -> Outlook:
        """Tells what waits."""
        async with self._database.system() as connection:
            return await webhook_claims.outlook(connection)
