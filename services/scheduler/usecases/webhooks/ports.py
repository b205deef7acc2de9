"""What webhooks need of the outside: the deliveries of a caller, the queue of all of them, HTTP, and a seal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from services.scheduler.domain.webhooks import Delivery, DeliveryAttempt, DeliveryState, SealedSecrets


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries to list; None and nothing mean any."""

    user_id: UUID | None = None
    task_id: UUID | None = None
    run_id: UUID | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """A delivery that a sender holds for one attempt.

    Attributes:
        delivery_id: The delivery.
        task_id: Its task.
        holder: The sender.
        attempt: The attempt's number; with the holder it fences what the sender writes.
        url: Where the task's webhook points now.
        message_id: The header `webhook-id`.
        payload: The body.
        secrets: What signs it, sealed.
    """

    delivery_id: UUID
    task_id: UUID
    holder: str
    attempt: int
    url: str
    message_id: str
    payload: bytes
    secrets: SealedSecrets


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        status: The HTTP status; 0 if no answer came.
        error: Why it does not count as handed over, a stable name; empty for one that does.
        error_message: The same in words.
        body: The beginning of the answer's body.
        retry_after: How long the receiver asks to be left alone.
        duration: How long it took.
    """

    status: int = 0
    error: str = ""
    error_message: str = ""
    body: str = ""
    retry_after: timedelta | None = None
    duration: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What waits: seconds until the next delivery falls due, and for how many the oldest that is due has been so."""

    next_seconds: float | None
    overdue_seconds: float


class WebhookTransaction(Protocol):
    """The part of a caller's transaction that is about webhooks."""

    async def insert_webhook_secret(self, task_id: UUID, user_id: UUID, sealed: bytes) -> None:
        """Keeps the first secret of a task; one that is there stays."""

    async def rotate_webhook_secret(self, task_id: UUID, sealed: bytes) -> None:
        """Replaces the secret of a task, whose row is locked; the one there was signs beside it for a while."""

    async def get_webhook_secrets(self, task_id: UUID) -> SealedSecrets:
        """Returns the secrets of a task that has a webhook."""

    async def get_delivery(self, delivery_id: UUID, *, lock: bool = False) -> Delivery:
        """Returns a delivery; with `lock` no sender writes to it until the end of the transaction."""

    async def list_deliveries(
        self, wanted: DeliveryFilter, before: UUID | None, limit: int
    ) -> list[Delivery]:
        """Returns deliveries without their bodies, the newest first."""

    async def list_delivery_attempts(self, delivery_id: UUID) -> list[DeliveryAttempt]:
        """Returns the attempts at a delivery, in their order."""

    async def redeliver(self, delivery_id: UUID, new_id: UUID) -> None:
        """Makes a delivery of what another one, which is locked, says; all that wait with the same message end."""


class DeliveryQueue(Protocol):
    """The deliveries of all tenants, as senders see them.

    All methods raise ServiceError UNAVAILABLE while the database is away.
    """

    async def claim(self, holder: str, limit: int) -> list[DeliveryClaim]:
        """Takes at most `limit` deliveries that are due, a few of each receiver; one more attempt has begun then."""

    async def finish(self, claim: DeliveryClaim, answer: Answer, pause: timedelta | None) -> DeliveryState:
        """Records what came of an attempt; None for no other one. Returns where the delivery stands."""

    async def release(self, holder: str) -> None:
        """Gives back all deliveries of a sender that claims and sends nothing more."""

    async def outlook(self) -> Outlook:
        """Tells what waits."""


class Post(Protocol):
    """Sends requests to receivers."""

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends a POST request; whatever goes wrong is in the answer."""


class Seal(Protocol):
    """Seals what lies in the database; see `kernel.sealing.Sealer`."""

    def seal(self, secret: bytes, name: str) -> bytes:
        """Seals a secret; it opens under this name only."""

    def open(self, sealed: bytes, name: str) -> bytes:
        """Opens it. Raises: ValueError."""
