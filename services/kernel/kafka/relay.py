"""The relay: takes facts from a service's outbox to the broker.

Every replica of a service that writes facts runs one; `services/kernel/db/outbox.py` says who writes what, and what is
so when a process dies on the way. It is woken by the commit of the transaction that wrote (`Database.on_commit`), and
looks once a second for what others have left: rows of a replica that died, or of a transaction whose commit nobody
here heard of. No `NOTIFY`: PostgreSQL takes one lock for the whole database at the commit of a transaction that
notifies, and every replica that writes has a relay of its own.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.kernel.clock import Clock
from services.kernel.db import Database
from services.kernel.db.outbox import WRITTEN, Outbox, OutboxPublisher, PublishError
from services.kernel.errors import ServiceError
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
BATCH: Final = 200
LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 10.0
"""How long a batch may take: well below the minute after which PostgreSQL ends a transaction that does nothing."""
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
PUBLISHED: Final = Counter(
    "aiagent_outbox_published_total",
    "Facts that the broker has acknowledged, repetitions included.",
    ("service",),
    registry=registry,
)
FAILURES: Final = Counter(
    "aiagent_outbox_failures_total",
    "Attempts to publish that failed or were acknowledged in part; all are made again.",
    ("service",),
    registry=registry,
)
AGE: Final = Gauge(
    "aiagent_outbox_oldest_seconds",
    "How long the oldest fact that is not published has been waiting; 0 when there is none.",
    ("service",),
    registry=registry,
)


class OutboxRelay:
    """Publishes what one service has in its outbox, for ever."""

    def __init__(
        self, service: str, database: Database, outbox: Outbox, publisher: OutboxPublisher, clock: Clock
    ) -> None:
        """Args:
        service: Its name, for metrics and logs.
        database: Of the service; its relay connection is used.
        outbox: The statements on its outbox.
        publisher: Where facts go; closed when the relay ends.
        clock: Waits while the broker is away.
        """
        self._service = service
        self._database = database
        self._outbox = outbox
        self._publisher = publisher
        self._clock = clock
        self._woken = asyncio.Event()
        self._away = False
        database.on_commit(WRITTEN, self.wake)

    def wake(self) -> None:
        """Says that there is something to publish."""
        self._woken.set()

    async def run(self) -> None:
        """Publishes until it is cancelled. Without its broker, or its database, it waits and tries again."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                self._woken.clear()
                if await self._all():
                    pause = FIRST_PAUSE_SECONDS
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._woken.wait()
                else:
                    # With some chance in it: replicas that lost the same broker do not come back to it as one.
                    await self._clock.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # not for secrets
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            await self._publisher.close()

    async def _all(self) -> bool:
        """Publishes until nothing is left to take; False when something is left that could not be published."""
        try:
            # Before any row is locked: for as long as there is no broker, none is.
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._publisher.open()
            while await self._batch() == BATCH:
                pass
        except (PublishError, TimeoutError) as error:
            FAILURES.labels(self._service).inc()
            if not self._away:
                _log.warning(
                    "facts wait for the broker", service=self._service, why=str(error) or "no answer"
                )
            self._away = True
            await self._publisher.close()
            await self._measure()
            return False
        except ServiceError as error:
            _log.info("facts wait for the database", service=self._service, reason=error.reason)
            return False
        if self._away:
            self._away = False
            _log.info("facts are published again", service=self._service)
        AGE.labels(self._service).set(0.0)
        return True

    async def _batch(self) -> int:
        """Publishes what can be had at once; returns how many rows that was."""
        async with self._database.relay_system() as connection:
            messages = await self._outbox.claim(connection, BATCH)
            if not messages:
                return 0
            async with asyncio.timeout(ANSWER_SECONDS):
                acknowledged = await self._publisher.publish(messages)
            if acknowledged:
                await self._outbox.mark(connection, sorted(acknowledged))
        PUBLISHED.labels(self._service).inc(len(acknowledged))
        if len(acknowledged) < len(messages):
            raise PublishError(f"{len(messages) - len(acknowledged)} of {len(messages)} not acknowledged")
        return len(messages)

    async def _measure(self) -> None:
        with suppress(ServiceError):
            async with self._database.relay_system() as connection:
                AGE.labels(self._service).set(await self._outbox.age_seconds(connection))
