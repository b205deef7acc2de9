"""Who gets to Apache Kafka through TLS, and what is said of it where nobody does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.outbox import Outbox, OutboxWriter, PublishError
from services.kernel.kafka.admin import declare
from services.kernel.kafka.consumer import StreamConsumer
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.relay import OutboxRelay
from services.kernel.kafka.settings import Broker, KafkaSettings
from services.kernel.kafka.topics import Topic
from services.kernel.testing import a_caller
from tests.integration.kernel.tables import outbox
from tests.integration.kernel.test_stream_consumer import Heard, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def ours() -> None:
    if "KAFKA_CERTIFIED_URL" not in os.environ:
        pytest.skip("the broker is not ours, with certificates that are known")


@pytest.fixture
async def topic(database: Database) -> Topic:
    """A topic of this test alone, which is not there yet, and an empty outbox."""
    async with database.system() as connection:
        await connection.execute(sa.delete(outbox))
    return Topic(f"test-{uuid4()}", "google.protobuf.StringValue", 1, timedelta(hours=1))


def reached(**settings: Any) -> Broker:
    """The broker by the settings of the environment, with others in their place."""
    found = KafkaSettings(_env_file=None, **settings).broker()  # type: ignore[call-arg]
    assert found is not None
    return found


def by_certificate(**settings: Any) -> Broker:
    return reached(kafka_url=os.environ["KAFKA_CERTIFIED_URL"], kafka_security="SSL", **settings)


async def write(database: Database, topic: Topic) -> None:
    caller = a_caller()
    async with database.tenant(caller) as connection:
        await OutboxWriter(outbox).add(connection, topic.name, "key", b"fact", caller.organization_id)


def relay(database: Database, broker: Broker, topic: Topic) -> OutboxRelay:
    return OutboxRelay("sample", database, Outbox(outbox), KafkaPublisher(broker, [topic]), SystemClock())


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)


async def test_a_client_proves_itself_by_its_certificate(database: Database, topic: Topic) -> None:
    with pytest.raises(PublishError, match="no connection to the broker"):
        await declare(by_certificate(), [topic])
    broker = by_certificate(kafka_certificate_file=os.environ["KAFKA_CERTIFICATE_FILE"])
    await declare(broker, [topic])
    heard = Heard()
    consumer = StreamConsumer(f"group-{topic.name}", broker, {topic: heard}, SystemClock())
    async with running(relay(database, broker, topic).run(), consumer.run()):
        await write(database, topic)
        await until(lambda: bool(heard.events), 60)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"kafka_ca_file": os.environ.get("KAFKA_ANOTHER_CA_FILE")}, "CERTIFICATE_VERIFY_FAILED"),
        ({"kafka_sasl_password": "another"}, "Authentication failed"),
    ],
    ids=["authority", "password"],
)
async def test_whoever_cannot_get_in_is_told_why(
    database: Database, topic: Topic, wrong: dict[str, Any], why: str
) -> None:
    broker = reached(**wrong)
    with pytest.raises(PublishError, match=why):
        await asyncio.wait_for(declare(broker, [topic]), 10)
    heard = Heard()
    consumer = StreamConsumer(f"group-{topic.name}", broker, {topic: heard}, SystemClock())
    with capture_logs() as logs:
        await write(database, topic)
        async with running(relay(database, broker, topic).run(), consumer.run()):
            await until(
                lambda: (
                    {"facts wait for the broker", "consumer waits for the broker"}
                    <= {line["event"] for line in logs if why in line.get("why", "")}
                )
            )
    assert not any("exc_info" in line for line in logs)
    assert not heard.events
