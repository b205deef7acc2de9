"""Messages of webhooks that are made where runs end, and what their owners see of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.kernel.identity import Caller
from services.kernel.ids import new_id
from services.scheduler.domain.errors import webhook_delivery_not_found
from services.scheduler.domain.webhook_messages import event_type, message_id, payload
from services.scheduler.domain.webhooks import (
    PREVIOUS_SECRET_LIFE,
    TOLD_STATES,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    SealedSecrets,
)
from services.scheduler.store.run_rows import UNREAD_CONTENT, run_of
from services.scheduler.store.tables import runs, tasks
from services.scheduler.store.webhook_tables import webhook_attempts, webhook_deliveries, webhook_secrets
from services.scheduler.usecases.webhooks.ports import DeliveryFilter

WEBHOOKS: Final = "webhooks"
"""What `Database.on_commit` is told when there is something to send."""
_NOW = sa.func.clock_timestamp()
# Of runs that nobody is to be told of, which are nearly all, nothing is read.
_TOLD = (
    sa.select(*(column for column in runs.c if column.name not in {"prompt", "variables"}), *UNREAD_CONTENT)
    .join_from(runs, tasks, tasks.c.id == runs.c.task_id)
    .where(
        runs.c.id == sa.any_(sa.bindparam("run_ids", type_=sa.ARRAY(runs.c.id.type))),
        tasks.c.webhook_url.is_not(None),
        runs.c.state.in_([state.value for state in TOLD_STATES]),
        sa.or_(tasks.c.webhook_states == [], runs.c.state == sa.any_(tasks.c.webhook_states)),
    )
)
_ENQUEUED = (
    postgresql.insert(webhook_deliveries)
    .values(state=DeliveryState.PENDING.value, next_attempt_time=_NOW)
    .on_conflict_do_nothing(
        index_elements=["run_id"], index_where=webhook_deliveries.c.redelivery_of.is_(None)
    )
)
_RUN_OF_DELIVERY = (
    sa.select(runs.c.id)
    .where(
        runs.c.id
        == sa.select(webhook_deliveries.c.run_id)
        .where(webhook_deliveries.c.id == sa.bindparam("delivery_id"))
        .scalar_subquery()
    )
    .with_for_update(read=True, key_share=True)
)
_LISTED = sa.select(
    *(column for column in webhook_deliveries.c if column.name != "payload"),
    sa.literal(b"", webhook_deliveries.c.payload.type).label("payload"),
)


async def enqueue(connection: AsyncConnection, run_ids: Sequence[UUID]) -> None:
    """Makes the messages of runs that have just ended, for those of their tasks that want to hear of it.

    In the transaction that ends the runs, a tenant's or the system's, whose rows it has locked: a message is there if
    and only if its run has ended. The commit wakes this process's sender; one that dies before leaves rows that others
    find. What is said is fixed here, where it is said is not.

    The runs are read again, in one statement that finds nothing where no task of theirs has a webhook: what a fact says
    of an end is less than what a receiver is told, and results are not carried about for nobody.

    Args:
        connection: the transaction.
        run_ids: the runs; those that go on, and those that were told of already, are left out.
    """
    if not run_ids:
        return
    found = [run_of(row) for row in await connection.execute(_TOLD, {"run_ids": list(run_ids)})]
    if not found:
        return
    made = [
        {
            "id": new_id(),
            "organization_id": run.organization_id,
            "user_id": run.user_id,
            "task_id": run.task_id,
            "run_id": run.id,
            "event_type": event_type(run),
            "message_id": message_id(run),
            "payload": payload(run),
        }
        for run in found
    ]
    await connection.execute(_ENQUEUED, made)
    note(connection, WEBHOOKS)


class TenantWebhooks:
    """See `usecases.webhooks.ports.WebhookTransaction`."""

    _connection: AsyncConnection
    _caller: Caller

    async def insert_webhook_secret(self, task_id: UUID, user_id: UUID, sealed: bytes) -> None:
        """Keeps the first secret of a task; one that is there stays."""
        await self._connection.execute(
            postgresql.insert(webhook_secrets)
            .values(
                task_id=task_id,
                organization_id=self._caller.organization_id,
                user_id=user_id,
                current=sealed,
            )
            .on_conflict_do_nothing(index_elements=["task_id"])
        )

    async def rotate_webhook_secret(self, task_id: UUID, sealed: bytes) -> None:
        """Replaces the secret of a task; the one there was signs beside it for a while."""
        await self._connection.execute(
            sa.update(webhook_secrets)
            .where(webhook_secrets.c.task_id == task_id)
            .values(
                current=sealed,
                previous=webhook_secrets.c.current,
                create_time=_NOW,
                previous_expire_time=_NOW + PREVIOUS_SECRET_LIFE,
            )
        )

    async def get_webhook_secrets(self, task_id: UUID) -> SealedSecrets:
        """Returns the secrets of a task that has a webhook."""
        query = sa.select(webhook_secrets).where(webhook_secrets.c.task_id == task_id)
        return secrets_of((await self._connection.execute(query)).one())

    async def get_delivery(self, delivery_id: UUID, *, lock: bool = False) -> Delivery:
        """Returns a delivery; with `lock` no sender writes to it until the end of the transaction.

        Its run is locked first, as far as a redelivery will need it: whoever removes a run holds that, and then its
        deliveries.
        """
        query = sa.select(webhook_deliveries).where(webhook_deliveries.c.id == delivery_id)
        if lock:
            await self._connection.execute(_RUN_OF_DELIVERY, {"delivery_id": delivery_id})
            query = query.with_for_update()
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            raise webhook_delivery_not_found(delivery_id)
        return _delivery_of(row)

    async def list_deliveries(
        self, wanted: DeliveryFilter, before: UUID | None, limit: int
    ) -> list[Delivery]:
        """Returns deliveries without their bodies, the newest first."""
        columns = webhook_deliveries.c
        query = _LISTED.order_by(columns.id.desc()).limit(limit)
        for column, value in (
            (columns.user_id, wanted.user_id),
            (columns.task_id, wanted.task_id),
            (columns.run_id, wanted.run_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if wanted.states:
            query = query.where(columns.state.in_(wanted.states))
        if before is not None:
            query = query.where(columns.id < before)
        return [_delivery_of(row) for row in await self._connection.execute(query)]

    async def list_delivery_attempts(self, delivery_id: UUID) -> list[DeliveryAttempt]:
        """Returns the attempts at a delivery, in their order."""
        columns = webhook_attempts.c
        query = sa.select(webhook_attempts).where(columns.delivery_id == delivery_id).order_by(columns.number)
        return [
            DeliveryAttempt(
                number=row.number,
                url=row.url,
                start_time=row.start_time,
                duration=row.duration,
                http_status=row.http_status,
                error=row.error,
                error_message=row.error_message,
                response_body=row.response_body,
            )
            for row in await self._connection.execute(query)
        ]

    async def redeliver(self, delivery_id: UUID, new_id: UUID) -> None:
        """Makes a delivery of what another one, which is locked, says; all that wait with the same message end.

        The task must be locked, too: of one message no two are made at once.
        """
        columns = webhook_deliveries.c
        run_id = sa.select(columns.run_id).where(columns.id == delivery_id).scalar_subquery()
        await self._connection.execute(
            sa.update(webhook_deliveries)
            .where(columns.run_id == run_id, columns.state == DeliveryState.PENDING.value)
            .values(
                state=DeliveryState.CANCELLED.value, end_time=_NOW, next_attempt_time=None, lease_holder=None
            )
        )
        copied = (
            "organization_id", "user_id", "task_id", "run_id", "event_type", "message_id", "payload",
        )  # fmt: skip
        again = sa.select(
            sa.literal(new_id, columns.id.type),
            sa.literal(DeliveryState.PENDING.value),
            _NOW,
            columns.id,
            *(columns[name] for name in copied),
        ).where(columns.id == delivery_id)
        await self._connection.execute(
            sa.insert(webhook_deliveries).from_select(
                ["id", "state", "next_attempt_time", "redelivery_of", *copied], again
            )
        )
        note(self._connection, WEBHOOKS)


def secrets_of(row: Any) -> SealedSecrets:
    """Reads a row of `webhook_secrets`."""
    return SealedSecrets(row.current, row.previous, row.create_time, row.previous_expire_time)


def _delivery_of(row: Any) -> Delivery:
    return Delivery(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        task_id=row.task_id,
        run_id=row.run_id,
        event_type=row.event_type,
        message_id=row.message_id,
        state=DeliveryState(row.state),
        attempt_count=row.attempt_count,
        payload=row.payload,
        redelivery_of=row.redelivery_of,
        create_time=row.create_time,
        next_attempt_time=row.next_attempt_time,
        end_time=row.end_time,
    )
