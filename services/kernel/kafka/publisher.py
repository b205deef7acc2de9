"""Publishes to Kafka, and counts as published only what every replica in sync has acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Final
from uuid import UUID

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError

from services.kernel.db.outbox import OutboxMessage, PublishError
from services.kernel.kafka.admin import declare
from services.kernel.kafka.headers import EVENT_ID, MESSAGE_TYPE, ORGANIZATION_ID
from services.kernel.kafka.reach import why_unreachable
from services.kernel.kafka.settings import Broker
from services.kernel.kafka.topics import Topic

_log = structlog.get_logger(__name__)
REQUEST_SECONDS = 8.0
"""Less than what a relay waits for a batch: the client gives up before it is given up."""
_CLOSE_SECONDS: Final = 2.0


class KafkaPublisher:
    """See `services.kernel.db.outbox.OutboxPublisher`.

    A record's key is the fact's, its value the serialized message, its headers `EVENT_ID`, `MESSAGE_TYPE` and
    `ORGANIZATION_ID`.
    """

    def __init__(self, broker: Broker, topics: Sequence[Topic]) -> None:
        """Args: broker: where to; topics: those that facts may go to."""
        self._broker = broker
        self._topics = {topic.name: topic for topic in topics}
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Connects.

        Raises:
            PublishError: The broker cannot be reached.
        """
        if self._producer is not None:
            return
        if self._broker.declare_topics:
            # The local broker has forgotten them if it was started again, and would make them up in its own way.
            await declare(self._broker, self._topics.values())
        producer = AIOKafkaProducer(
            **self._broker.client(),
            acks="all",
            # Repetitions by the client itself are then told apart by the broker; the local one cannot.
            enable_idempotence=not self._broker.local,
            request_timeout_ms=round(REQUEST_SECONDS * 1000),
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await _stop(producer)
            raise PublishError(
                f"no connection to the broker: {await why_unreachable(self._broker)}"
            ) from error
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer

    async def publish(self, messages: Sequence[OutboxMessage]) -> set[UUID]:
        """Sends all, and waits until each was acknowledged or refused; returns the ids of the former."""
        producer = self._producer
        if producer is None:
            raise AssertionError("not open")
        outcomes = await asyncio.gather(
            *(self._send(producer, message) for message in messages), return_exceptions=True
        )
        acknowledged: set[UUID] = set()
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                acknowledged.add(message.id)
            elif not isinstance(outcome, KafkaError | OSError | TimeoutError):
                raise outcome
            else:
                _log.debug("fact not acknowledged", topic=message.topic, why=repr(outcome))
        return acknowledged

    async def _send(self, producer: AIOKafkaProducer, message: OutboxMessage) -> None:
        topic = self._topics.get(message.topic)
        headers = [
            (EVENT_ID, str(message.id).encode()),
            (MESSAGE_TYPE, (topic.message if topic else "").encode()),
            (ORGANIZATION_ID, str(message.organization_id).encode()),
        ]
        await producer.send_and_wait(
            message.topic, message.payload, key=message.key.encode(), headers=headers
        )

    async def close(self) -> None:
        """Disconnects; what was not acknowledged by then counts as not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)


async def _stop(producer: AIOKafkaProducer) -> None:
    # Asked to stop it sends first what it has, which to a broker that is gone takes long: nobody waits for that now. So
    # connections and sender end before what is left is failed; in another order the sender stumbles over it.
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await producer.client.close()
            await producer._sender.close()
    accumulator = producer._message_accumulator
    left = [*accumulator._pending_batches, *chain.from_iterable(accumulator._batches.values())]
    # Each takes itself out of these once it has failed, which one that was put back to be sent again is not among.
    accumulator._pending_batches.update(left)
    accumulator.fail_all(KafkaConnectionError("closed"))
    for batch in left:
        # It fails for whoever waits for room in the batch, too; where nobody does, its error would be printed.
        batch._drain_waiter.exception()
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await producer.stop()
