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
from services.scheduler.domain.webhooks import DeliveryState
from services.scheduler.store import claims, webhook_claims
from services.scheduler.store.tables import idempotency_keys, runs, tasks
from services.scheduler.store.webhook_tables import webhook_deliveries
from services.scheduler.usecases.webhook_ports import Answer, DeliveryClaim, Outlook
from services.scheduler.usecases.worker.ports import Renewal

_PURGED_AT_ONCE = 100
_UNDER_WAY = sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))
# What its last runs have to say is still told.
_UNTOLD = sa.exists().where(
    webhook_deliveries.c.task_id == tasks.c.id,
    webhook_deliveries.c.state == DeliveryState.PENDING.value,
)


class HouseKeeping:
    """Removes what has no more meaning; several replicas do not get in each other's way."""

    def __init__(self, database: Database) -> None:
        """Args: database: the scheduler schema."""
        self._database = database

    async def purge(self) -> int:
        """Deletes what has no more meaning, a bounded number; returns how many.

        These are expired request ids, deleted tasks of which nothing is under way, and old deliveries of webhooks.
        """
        async with self._database.system() as connection:
            found = (
                sa.select(tasks.c.id)
                .where(tasks.c.delete_time.is_not(None), sa.not_(_UNDER_WAY), sa.not_(_UNTOLD))
                .limit(_PURGED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            removed = await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))
            told = await webhook_claims.purge(connection, _PURGED_AT_ONCE)
            return removed.rowcount + told + await purge_expired(connection, idempotency_keys)


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
