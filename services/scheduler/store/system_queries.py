"""The queries of the system role: the only ones that look across tenants. A test lists them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.kernel.db.database import note
from services.kernel.db.idempotency import purge_expired
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.runs import UNREADABLE, Claim, Failure
from services.scheduler.domain.webhooks import DeliveryState
from services.scheduler.store import claimable, claims, endings, firing, purging, recording, webhook_claims
from services.scheduler.store.facts import OUTBOX, TASK_RUNS
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.tables import idempotency_keys, outbox, runs
from services.scheduler.usecases.firing.ports import StalePrompt, Unreadable
from services.scheduler.usecases.webhooks.ports import Answer, DeliveryClaim, Outlook
from services.scheduler.usecases.worker.ports import Claimed, Progress, Recorded, Renewal

_log = structlog.get_logger(__name__)
_VERSIONS = sa.select(runs.c.id, runs.c.version).where(
    runs.c.id == sa.func.any(sa.bindparam("run_ids", type_=sa.ARRAY(runs.c.id.type)))
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

        Each kind goes in a transaction of its own: one that fails is logged and keeps no other from going.
        """
        gone = 0
        if self._keep_runs is not None:
            gone += await self._each("old runs", partial(purging.old_runs, keep=self._keep_runs))
        gone += await self._each("deleted tasks", purging.deleted_tasks)
        gone += await self._each("deliveries", webhook_claims.purge)
        return gone + await self._each("request ids", partial(purge_expired, table=idempotency_keys))

    async def purge_facts(self, *, unwanted: bool) -> int:
        """Deletes facts that have had their time, a bounded number; returns how many. See `Outbox.purge`."""
        return await self._each("facts", partial(OUTBOX.purge, unwanted=unwanted))

    async def _each(self, kind: str, purge: Callable[[AsyncConnection], Awaitable[int]]) -> int:
        try:
            async with self._database.system() as connection:
                return await purge(connection)
        except ServiceError as error:
            _log.warning("not purged", kind=kind, reason=error.reason)
        except Exception:
            BACKGROUND_FAILURES.labels("housekeeping").inc()
            _log.exception("not purged", kind=kind)
        return 0


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

    def __init__(self, database: Database, *, per_user: int = 0) -> None:
        """Args: database: the scheduler schema; per_user: as for `RunQueries`."""
        self._database = database
        self._per_user = per_user

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
            return await claimable.oldest_seconds(connection, self._per_user)


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
            return await recording.record(connection, steps)

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back."""
        async with self._database.system() as connection:
            await claims.release(connection, held)

    async def hopeless(self) -> list[UUID]:
        """The runs that were taken over as often as may be."""
        async with self._database.system() as connection:
            return await claims.hopeless(connection)

    async def give_up(self, run_id: UUID, holder: str) -> Claim | None:
        """Ends such a run."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            return await claims.give_up(connection, run_id, holder)

    async def end_of_deleted_tasks(self) -> int:
        """Ends runs that wait and whose task was deleted."""
        async with self._database.system() as connection:
            note(connection, RUNS_CHANGED)
            return await endings.end_of_deleted_tasks(connection)

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
        async with self._database.system(idle_seconds=firing.MOST_IDLE_SECONDS) as connection:
            yield firing.FiringTransaction(connection)

    async def seconds_to_fire(self, aside: Sequence[UUID]) -> float | None:
        """How long until a schedule is due, `aside` left out; None if none will be."""
        async with self._database.system() as connection:
            return await firing.seconds_to_fire(connection, aside)

    async def seconds_to_backfill(self, aside: Sequence[UUID]) -> float | None:
        """The same of backfills."""
        async with self._database.system() as connection:
            return await firing.seconds_to_backfill(connection, aside)

    async def stale(self, limit: int, aside: Sequence[UUID]) -> list[StalePrompt | Unreadable]:
        """Schedules whose prompt is to be rendered, those that are due soonest of each organization first."""
        async with self._database.system() as connection:
            return await firing.stale_prompts(connection, limit, aside)

    async def keep(self, found: StalePrompt, prompt: str | None, fault: Failure | None) -> bool:
        """Records a prompt, or why there is none; False if task or schedule have changed."""
        async with self._database.system() as connection:
            return await firing.keep_prompt(connection, found, prompt, fault)


class WebhookQueries:
    """See `usecases.webhooks.ports.DeliveryQueue`."""

    def __init__(
        self,
        database: Database,
        *,
        lease_life: timedelta = webhook_claims.LEASE_LIFE,
        silence: timedelta = webhook_claims.SILENCE,
    ) -> None:
        """Composes the queue.

        Args:
            database: the scheduler schema.
            lease_life: how long a delivery is held for its attempt.
            silence: how long a sender may be silent in a transaction that others wait for.
        """
        self._database = database
        self._lease_life = lease_life
        self._silence = silence

    async def claim(self, holder: str, limit: int) -> list[DeliveryClaim]:
        """Takes deliveries that are due, and ends those that nobody is to send any more."""
        async with self._database.system() as connection:
            await webhook_claims.end_hopeless(connection, silence=self._silence)
        async with self._database.system() as connection:
            return await webhook_claims.claim(
                connection, holder, limit, life=self._lease_life, silence=self._silence
            )

    async def finish(self, claim: DeliveryClaim, answer: Answer, pause: timedelta | None) -> DeliveryState:
        """Records what came of an attempt."""
        async with self._database.system() as connection:
            return await webhook_claims.finish(connection, claim, answer, pause)

    async def release(self, holder: str) -> None:
        """Gives back all that a sender holds."""
        async with self._database.system() as connection:
            await webhook_claims.release(connection, holder, silence=self._silence)

    async def outlook(self) -> Outlook:
        """Tells what waits."""
        async with self._database.system() as connection:
            return await webhook_claims.outlook(connection)
