"""Webhooks: whom a task tells of its runs' ends, how a message is signed, and when it is sent again.

Messages are those of the Standard Webhooks specification 1.0.0
(https://github.com/standard-webhooks/standard-webhooks): three headers and a body, which is in `webhook_messages`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.scheduler.domain.states import RunState

TOLD_STATES: Final = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT)
"""The ends that a webhook tells of."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # of the specification; no secret
SECRET_BYTES: Final = 32
PREVIOUS_SECRET_LIFE: Final = timedelta(hours=24)
"""How long a secret that was rotated away signs beside its successor."""
GIVE_UP_AFTER: Final = timedelta(hours=24)
"""From the first attempt on; no other one follows later."""
PER_RECEIVER: Final = 3
"""How many messages to one host and port are under way at once: one that hangs keeps no more places than that."""
KEPT: Final = timedelta(days=30)
"""How long a delivery is kept after its end."""
LONGEST_WAIT: Final = timedelta(hours=24)
"""How long a delivery that is due may wait for a sender to come to it, from its creation before the first attempt."""
GONE: Final = 410
"""The status by which a receiver says that it wants no more of it."""
_PAUSES: Final = tuple(
    timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)
)
_JITTER: Final = 0.2
_LONGEST_PAUSE: Final = _PAUSES[-1]


class DeliveryState(StrEnum):
    """Where a delivery stands; the names are those of the enum in `aiagent.scheduler.v1`."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom a task tells.

    Attributes:
        url: Where to send.
        states: Of which ends, in the order of their names; none means all.
    """

    url: str
    states: tuple[RunState, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt to hand a message over; fields as `aiagent.scheduler.v1.WebhookAttempt` tells them."""

    number: int
    url: str
    start_time: datetime
    duration: timedelta | None
    http_status: int
    error: str
    error_message: str
    response_body: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to a receiver; fields as `aiagent.scheduler.v1.WebhookDelivery` tells them."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    task_id: UUID
    run_id: UUID
    event_type: str
    message_id: str
    state: DeliveryState
    attempt_count: int
    payload: bytes
    redelivery_of: UUID | None
    create_time: datetime
    next_attempt_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """The secrets of a task's webhook as they are kept: sealed.

    Attributes:
        current: The secret.
        previous: The one before it, while that signs too.
        create_time: When the current one was made.
        previous_expire_time: Until when the one before signs.
    """

    current: bytes
    previous: bytes | None
    create_time: datetime
    previous_expire_time: datetime | None


def secret_text(secret: bytes) -> str:
    """Writes a secret as its receivers know it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def secret_bytes(text: str) -> bytes:
    """Reads what `secret_text` wrote.

    Raises:
        ValueError: it is no such text.
    """
    if not text.startswith(SECRET_PREFIX):
        raise ValueError("no secret of a webhook")
    try:
        return base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("no secret of a webhook") from None


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Signs a message with one secret: version 1 of the specification, HMAC-SHA256 over id, time and body."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


def headers(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """The headers of one attempt.

    Args:
        secrets: each signs; the current one first.
        message_id: the event's.
        timestamp: of the attempt, in seconds since 1970.
        body: what is sent.
    """
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(secret, message_id, timestamp, body) for secret in secrets),
    }


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What becomes of a delivery by the end of an attempt.

    Attributes:
        state: Where it stands then.
        pause: Until its next attempt; None if this one leaves it as it is, or ends it.
    """

    state: DeliveryState
    pause: timedelta | None = None


def aftermath(
    state: DeliveryState, *, failed: bool, held: bool, pause: timedelta | None, left: timedelta
) -> Aftermath:
    """Judges what becomes of a delivery by the end of an attempt.

    That a receiver has taken the message counts whoever says so; a failure only of whoever holds the delivery.

    Args:
        state: where it stands.
        failed: whether the receiver has not taken it.
        held: whether whoever made the attempt holds it still.
        pause: how long to wait before another attempt; None if there is to be none. One that is longer than there is
            time is cut, so that the receiver gets its last attempt.
        left: until it is given up.
    """
    if state is not DeliveryState.PENDING or (failed and not held):
        return Aftermath(state)
    if not failed:
        return Aftermath(DeliveryState.SUCCEEDED)
    if pause is None or left <= timedelta():
        return Aftermath(DeliveryState.FAILED)
    return Aftermath(state, min(pause, left))


def pause_after(
    attempt: int, status: int, draw: float, retry_after: timedelta | None = None
) -> timedelta | None:
    """Returns how long to wait after an attempt that failed; None if the receiver wants no more of it.

    Args:
        attempt: the number of the attempt, from 1.
        status: the HTTP status of the answer; 0 if none came.
        draw: as `next_pause` has it.
        retry_after: as `next_pause` has it.
    """
    return None if status == GONE else next_pause(attempt, draw, retry_after)


def next_pause(attempt: int, draw: float, retry_after: timedelta | None = None) -> timedelta:
    """Returns how long to wait after an attempt that failed.

    Args:
        attempt: the number of the attempt, from 1.
        draw: chance, 0 to 1 without 1; it moves the pause by a fifth either way.
        retry_after: what the receiver asked for; heeded where it is longer, up to the longest pause there is.
    """
    pause = _PAUSES[min(attempt, len(_PAUSES)) - 1] * (1 + _JITTER * (2 * draw - 1))
    return max(pause, min(retry_after or timedelta(), _LONGEST_PAUSE))
