"""Relay and consumers on Apache Kafka: `make kafka` starts one, or AIAGENT_KAFKA_URL and its like name another."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.outbox import Outbox, OutboxWriter
from services.kernel.kafka.admin import declare
from services.kernel.kafka.consumer import StreamConsumer
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.relay import OutboxRelay
from services.kernel.kafka.settings import Broker, KafkaSettings
from services.kernel.kafka.topics import Topic
from services.kernel.testing import a_caller
from tests.integration.kernel.conftest import Postgres, a_database
from tests.integration.kernel.tables import outbox
from tests.integration.kernel.test_stream_consumer import Heard, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def broker() -> Broker:
    found = KafkaSettings(_env_file=None).broker()  # type: ignore[call-arg]
    if found is None:
        pytest.skip("AIAGENT_KAFKA_URL names no broker")
    return found


@pytest.fixture
async def topic(broker: Broker, database: Database) -> Topic:
    """A topic of this test alone, and an empty outbox."""
    async with database.system() as connection:
        await connection.execute(sa.delete(outbox))
    made = Topic(f"test-{uuid4()}", "google.protobuf.StringValue", 3, timedelta(hours=1))
    assert await declare(broker, [made]) == [made.name]
    return made


class Running:
    """A relay, and members of a group, on one topic."""

    def __init__(self, stack: AsyncExitStack, broker: Broker, topic: Topic, database: Database) -> None:
        self._stack, self._broker, self._topic, self._database = stack, broker, topic, database

    async def relay(self, database: Database | None = None) -> None:
        publisher = KafkaPublisher(self._broker, [self._topic])
        relay = OutboxRelay("sample", database or self._database, Outbox(outbox), publisher, SystemClock())
        self._run(relay.run())

    async def member(self) -> Heard:
        heard = Heard()
        consumer = StreamConsumer(
            f"group-{self._topic.name}", self._broker, {self._topic: heard}, SystemClock()
        )
        self._run(consumer.run())
        await asyncio.wait_for(consumer.ready.wait(), 60)
        return heard

    async def write(self, count: int) -> set[UUID]:
        writer, caller = OutboxWriter(outbox), a_caller()
        async with self._database.tenant(caller) as connection:
            return {
                await writer.add(connection, self._topic.name, f"key-{n}", b"fact", caller.organization_id)
                for n in range(count)
            }

    def _run(self, work: object) -> None:
        task = asyncio.create_task(work)  # type: ignore[arg-type]

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)


@asynccontextmanager
async def running(broker: Broker, topic: Topic, database: Database) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        yield Running(stack, broker, topic, database)


def every(members: Iterable[Heard]) -> list[UUID]:
    return [event.id for heard in members for event in heard.events]


async def test_topics_have_what_was_declared(broker: Broker, topic: Topic) -> None:
    assert await declare(broker, [topic]) == []
    admin = AIOKafkaAdminClient(**broker.client())
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic.name])
        resource = ConfigResource(ConfigResourceType.TOPIC, topic.name)
        (answer,) = await admin.describe_configs([resource])
    finally:
        await admin.close()
    assert len(described["partitions"]) == 3
    values = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert values["retention.ms"] == str(3_600_000)


async def test_each_fact_is_published_once_and_heard_once(
    broker: Broker, topic: Topic, database: Database, postgres: Postgres
) -> None:
    another = a_database(postgres)
    async with running(broker, topic, database) as it:
        await it.relay()
        await it.relay(another)
        members = [await it.member(), await it.member()]
        written = set().union(*[await it.write(100) for _ in range(20)])
        await until(lambda: set(every(members)) >= written, 60)
        assert len(every(members)) == len(written)
    await another.close()


async def test_a_killed_broker_loses_nothing(broker: Broker, topic: Topic, database: Database) -> None:
    pid_file = os.environ.get("KAFKA_PID_FILE")
    if pid_file is None:
        pytest.skip("the broker is not ours to kill")
    async with running(broker, topic, database) as it:
        await it.relay()
        heard = await it.member()
        written = await it.write(100)
        await until(lambda: bool(heard.events), 60)
        written |= await it.write(300)
        os.kill(int(Path(pid_file).read_text()), signal.SIGKILL)
        written |= await it.write(100)
        await until(lambda: heard.ids >= written, 150)
