"""What becomes of a publisher whose broker goes away while it has something to send, or was never there."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import UUID

import pytest

from deploy.local.ports import free_port
from services.kernel.db.outbox import OutboxMessage, PublishError
from services.kernel.ids import new_id
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.settings import Broker
from tests.integration.kernel.tables import FACTS
from tests.integration.kernel.test_stream_consumer import until
from tests.kafka_broker import LocalBroker

pytestmark = pytest.mark.integration


async def test_what_is_left_when_it_closes_is_failed_and_nothing_is_said_of_it() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    broker = LocalBroker(free_port())
    await broker.start()
    try:
        assert await with_its_broker_lost(broker) == set()
    finally:
        broker.kill()
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


async def with_its_broker_lost(broker: LocalBroker) -> set[UUID]:
    """Publishes while the broker is gone, and closes; returns what counts as published."""
    publisher = KafkaPublisher(broker.broker, [FACTS])
    await publisher.open()
    await publisher.publish([a_fact()])
    broker.kill()
    async with asyncio.TaskGroup() as group:
        publishing = group.create_task(publisher.publish([a_fact() for _ in range(20)]))
        # Put back to be sent again, after a first attempt.
        await until(lambda: any(batch.retry_count for batch in waiting(publisher)))
        await publisher.close()
    return publishing.result()


def waiting(publisher: KafkaPublisher) -> list[Any]:
    assert publisher._producer is not None
    return list(chain.from_iterable(publisher._producer._message_accumulator._batches.values()))


async def test_a_broker_that_is_not_there_is_named_with_what_it_came_to() -> None:
    port = free_port()
    publisher = KafkaPublisher(Broker((f"127.0.0.1:{port}",)), [FACTS])
    with pytest.raises(
        PublishError, match=rf"no connection to the broker: 127\.0\.0\.1:{port}: .*Connect call failed"
    ):
        await publisher.open()


def a_fact() -> OutboxMessage:
    return OutboxMessage(new_id(), new_id(), FACTS.name, "key", b"fact", datetime.now(UTC))
