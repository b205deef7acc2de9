"""Sends the messages of webhooks, in every process that carries runs: what is due, a few at once, each at least once.

An attempt is a row before it is a request. A process that dies in between, or before the answer is recorded, leaves a
lease that runs out; then the delivery is due again, with the same `webhook-id`, by which the receiver knows it. No
transaction is open while a request is under way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from services.kernel.clock import Clock
from services.kernel.context import about, detached
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES, repeat
from services.kernel.telemetry import registry
from services.scheduler.domain.webhooks import DeliveryState, headers, pause_after
from services.scheduler.usecases.webhooks.keeper import WebhookKeeper
from services.scheduler.usecases.webhooks.ports import Answer, DeliveryClaim, DeliveryQueue, Post

_log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0
"""Between two looks at most: a delivery that another process made tells nobody here."""
_DRAIN_SECONDS: Final = 5.0
_SECRET_LOST: Final = "SECRET_UNREADABLE"  # noqa: S105  # the name of an error
_ATTEMPTS: Final = Counter(
    "aiagent_webhook_attempts_total",
    "Attempts to hand messages of webhooks over, by where their delivery stood then.",
    ("state",),
    registry=registry,
)
_OVERDUE: Final = Gauge(
    "aiagent_webhook_oldest_due_seconds",
    "For how long the oldest delivery of a webhook that is due has been so.",
    registry=registry,
)


class WebhookSender:
    """The deliveries that one process sends. `start` it once the database is there, `drain` it at the end."""

    def __init__(
        self,
        queue: DeliveryQueue,
        post: Post,
        keeper: WebhookKeeper,
        *,
        holder: str,
        clock: Clock,
        places: int,
        look_seconds: float = LOOK_SECONDS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Composes the sender.

        Args:
            queue: The deliveries.
            post: Sends requests.
            keeper: Opens secrets.
            holder: This process's name in leases, new at each start.
            clock: Tells the time that is signed.
            places: How many requests at once; 0 for none.
            look_seconds: See `LOOK_SECONDS`.
            draw: A source of chance, 0 to 1 without 1.
        """
        self._queue = queue
        self._post = post
        self._keeper = keeper
        self._holder = holder
        self._clock = clock
        self._places = places
        self._look_seconds = look_seconds
        self._draw = draw
        self._pause = 0.0
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._flights: dict[UUID, tuple[DeliveryClaim, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Starts sending."""
        if self._places:
            work = repeat("webhooks", self._claim_when_due, self._clock, 0.0)
            self._loop = asyncio.create_task(work, name="webhooks", context=detached())

    def wake(self) -> None:
        """Tells the sender that there may be something to send."""
        self._woken.set()

    async def drain(self) -> None:
        """Stops claiming, gives requests that are under way a moment, and the rest back to be sent anew."""
        if self._loop is None:
            return
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._loop = None
        tasks = [task for _, task in self._flights.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            # Of a claim that was broken off nothing is known here, though it may have committed.
            await self._queue.release(self._holder)
        except ServiceError as error:
            _log.warning("deliveries not given back; their leases will run out", reason=error.reason)

    async def _claim_when_due(self) -> None:
        try:
            async with asyncio.timeout(self._pause):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        self._pause = self._look_seconds
        await _unless_away(self._claim)

    async def _claim(self) -> None:
        """Claims until no place is free or nothing is due, and looks when something will be."""
        while free := self._places - len(self._flights):
            found = await self._queue.claim(self._holder, free)
            for claim in found:
                self._take(claim)
            if not found:
                break
        outlook = await self._queue.outlook()
        _OVERDUE.set(outlook.overdue_seconds)
        if outlook.next_seconds is not None:
            self._pause = min(self._look_seconds, outlook.next_seconds)

    def _take(self, claim: DeliveryClaim) -> None:
        key = claim.delivery_id
        before = self._flights.pop(key, None)
        if before is not None:
            # It was taken from this very sender: its lease had run out.
            before[1].cancel()
        task = asyncio.create_task(
            self._carry(claim), name=f"webhook-{key}", context=about(request=str(key), delivery_id=str(key))
        )
        self._flights[key] = (claim, task)

    async def _carry(self, claim: DeliveryClaim) -> None:
        try:
            state = await self._send(claim)
            _ATTEMPTS.labels(state.value).inc()
        except ServiceError as error:
            _log.warning("delivery put down; it will be sent again", reason=error.reason)
        except Exception:
            BACKGROUND_FAILURES.labels("webhook").inc()
            _log.exception("delivery failed unexpectedly; it will be sent again")
        finally:
            if self._flights.get(claim.delivery_id, (None,))[0] is claim:
                del self._flights[claim.delivery_id]
            # A place is free, here and at the receiver.
            self.wake()

    async def _send(self, claim: DeliveryClaim) -> DeliveryState:
        now, kept = self._clock.now(), claim.secrets
        sealed = [kept.current]
        if kept.previous is not None and kept.previous_expire_time and now < kept.previous_expire_time:
            sealed.append(kept.previous)
        secrets: list[bytes] = []
        for one in sealed:
            try:
                secrets.append(self._keeper.open(one, claim.task_id))
            except ValueError as error:
                # An operator has changed the key.
                _log.error("a secret of a webhook cannot be read", why=str(error))
        if not secrets:
            answer = Answer(error=_SECRET_LOST, error_message="the secret cannot be read; rotate it")
        else:
            signed = headers(secrets, claim.message_id, int(now.timestamp()), claim.payload)
            answer = await self._post(claim.url, signed, claim.payload)
        pause = None
        if answer.error:
            pause = pause_after(claim.attempt, answer.status, self._draw(), answer.retry_after)
        return await self._queue.finish(claim, answer, pause)


async def _unless_away(step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    except ServiceError as error:
        _log.warning("database not reached", reason=error.reason)
