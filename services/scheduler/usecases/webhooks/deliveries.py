"""What owners do with webhooks: read deliveries, send again, read and change the secret."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.scheduler.domain.entities import Task
from services.scheduler.domain.errors import secret_unreadable, webhook_not_set
from services.scheduler.domain.webhooks import (
    Delivery,
    DeliveryAttempt,
    SealedSecrets,
    secret_text,
)
from services.scheduler.usecases.access import canonical, require_writer
from services.scheduler.usecases.ports import SchedulerStore
from services.scheduler.usecases.webhooks.keeper import WebhookKeeper
from services.scheduler.usecases.webhooks.ports import DeliveryFilter


@dataclass(frozen=True, slots=True)
class ShownDelivery:
    """A delivery with the attempts at it."""

    delivery: Delivery
    attempts: list[DeliveryAttempt]


@dataclass(frozen=True, slots=True)
class ShownSecret:
    """A secret as its owner sees it; not in logs, hence without a representation."""

    task_id: UUID
    text: str
    create_time: datetime
    previous_expire_time: datetime | None

    def __repr__(self) -> str:
        return f"ShownSecret({self.task_id})"


class Webhooks:
    """The use cases."""

    def __init__(self, store: SchedulerStore, ids: IdSource, keeper: WebhookKeeper) -> None:
        """Args: store: the database; ids: names deliveries; keeper: makes and opens secrets."""
        self._store = store
        self._ids = ids
        self._keeper = keeper

    async def list_page(
        self, caller: Caller, wanted: DeliveryFilter, before: UUID | None, limit: int
    ) -> list[Delivery]:
        """Returns at most `limit` of the caller's deliveries, the newest first, that are older than `before`."""
        async with self._store.begin(caller) as transaction:
            return await transaction.list_deliveries(wanted, before, limit)

    async def get(self, caller: Caller, delivery_id: UUID) -> ShownDelivery:
        """Returns a delivery with its attempts.

        Raises:
            ServiceError: NOT_FOUND with WEBHOOK_DELIVERY_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return ShownDelivery(
                await transaction.get_delivery(delivery_id),
                await transaction.list_delivery_attempts(delivery_id),
            )

    async def redeliver(self, caller: Caller, delivery_id: UUID, request_id: str) -> ShownDelivery:
        """Sends the message of a delivery again.

        The delivery's row is locked, after its task's and its run's, so that a sender's end of it comes before or
        after; an attempt that is under way meanwhile is recorded and changes nothing else.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with WEBHOOK_DELIVERY_NOT_FOUND;
                FAILED_PRECONDITION with WEBHOOK_NOT_SET.
        """
        require_writer(caller)
        new_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                found = await transaction.get_delivery(delivery_id)
                # Locked before the delivery, so that the webhook is not removed meanwhile.
                await _with_webhook(transaction.get_task(found.task_id, lock=True))
                await transaction.get_delivery(delivery_id, lock=True)
                await transaction.redeliver(delivery_id, new_id)
                return new_id.bytes

            request = canonical(delivery_id)
            made = UUID(bytes=await transaction.once("RedeliverWebhook", request_id, request, run))
            return ShownDelivery(
                await transaction.get_delivery(made), await transaction.list_delivery_attempts(made)
            )

    async def get_secret(self, caller: Caller, task_id: UUID) -> ShownSecret:
        """Returns the secret of a task's webhook; who only reads could sign messages with it.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with TASK_NOT_FOUND; FAILED_PRECONDITION
                with WEBHOOK_NOT_SET, or SECRET_UNREADABLE where the operator has changed the key meanwhile.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:
            await _with_webhook(transaction.get_task(task_id))
            return self._shown(task_id, await transaction.get_webhook_secrets(task_id))

    async def rotate_secret(self, caller: Caller, task_id: UUID, request_id: str) -> ShownSecret:
        """Makes a new secret; the one there was signs beside it for 24 hours. A repeated call returns the newest.

        Raises:
            ServiceError: as `get_secret`.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await _with_webhook(transaction.get_task(task_id, lock=True))
                await transaction.rotate_webhook_secret(task_id, self._keeper.new_secret(task_id))
                # The secret itself does not lie with the request ids.
                return b""

            await transaction.once("RotateWebhookSecret", request_id, canonical(task_id), run)
            return self._shown(task_id, await transaction.get_webhook_secrets(task_id))

    def _shown(self, task_id: UUID, kept: SealedSecrets) -> ShownSecret:
        try:
            opened = self._keeper.open(kept.current, task_id)
        except ValueError:
            raise secret_unreadable(task_id) from None
        return ShownSecret(task_id, secret_text(opened), kept.create_time, kept.previous_expire_time)


async def _with_webhook(read: Awaitable[Task]) -> None:
    task = await read
    if task.content.webhook is None:
        raise webhook_not_set(task.id)
