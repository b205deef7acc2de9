"""Facts from a real PostgreSQL to a real broker of the local suite: at least once, whoever dies."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from deploy.local.ports import free_port
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.outbox import (
    KEPT_PUBLISHED,
    KEPT_UNWANTED,
    MOST_PAYLOAD_BYTES,
    Outbox,
    OutboxWriter,
)
from services.kernel.kafka import publisher as publisher_module
from services.kernel.kafka import relay as relay_module
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.relay import OutboxRelay
from services.kernel.telemetry import registry
from services.kernel.testing import a_caller
from tests.integration.kernel.conftest import SCHEMA, Postgres, a_database
from tests.integration.kernel.tables import FACTS, outbox
from tests.kafka_broker import LocalBroker, read

pytestmark = pytest.mark.integration
_WRITER = OutboxWriter(outbox)


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    made = LocalBroker(free_port())
    await made.start()
    yield made
    made.kill()


@pytest.fixture(autouse=True)
async def empty(database: Database) -> None:
    async with database.system() as connection:
        await connection.execute(sa.delete(outbox))


async def write(database: Database, count: int = 1) -> list[UUID]:
    caller = a_caller()
    async with database.tenant(caller) as connection:
        return [
            await _WRITER.add(connection, FACTS.name, f"key-{number % 7}", b"fact", caller.organization_id)
            for number in range(count)
        ]


async def unpublished(database: Database) -> set[UUID]:
    async with database.system() as connection:
        return set(await connection.scalars(sa.select(outbox.c.id).where(outbox.c.publish_time.is_(None))))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def relaying(database: Database, broker: LocalBroker) -> AsyncIterator[None]:
    relay = OutboxRelay(
        "sample", database, Outbox(outbox), KafkaPublisher(broker.broker, [FACTS]), SystemClock()
    )
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def told(name: str) -> float:
    return registry.get_sample_value(name, {"service": "sample"}) or 0.0


async def published(database: Database) -> bool:
    return not await unpublished(database)


async def test_a_commit_wakes_the_relay(
    database: Database, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LOOK_SECONDS", 600.0)
    async with relaying(database, broker):
        await write(database)
        await until(lambda: published(database))
        before = told("aiagent_outbox_published_total")
        caller = a_caller()
        async with database.tenant(caller) as connection:
            event = await _WRITER.add(connection, FACTS.name, "a key", b"fact", caller.organization_id)
        await until(lambda: published(database))
    assert told("aiagent_outbox_published_total") == before + 1
    record = next(
        record
        for record in await read(broker.broker, FACTS.name, [str(event)])
        if dict(record.headers)["event-id"] == str(event).encode()
    )
    assert (record.key, record.value) == (b"a key", b"fact")
    assert dict(record.headers) == {
        "event-id": str(event).encode(),
        "type": FACTS.message.encode(),
        "organization-id": str(caller.organization_id).encode(),
    }


async def test_what_was_rolled_back_is_no_fact(database: Database, broker: LocalBroker) -> None:
    caller = a_caller()
    async with relaying(database, broker):
        with pytest.raises(LookupError):
            async with database.tenant(caller) as connection:
                lost = await _WRITER.add(connection, FACTS.name, "key", b"fact", caller.organization_id)
                raise LookupError
        event = (await write(database))[0]
        await until(lambda: published(database))
    records = await read(broker.broker, FACTS.name, [str(event)])
    assert str(lost).encode() not in [dict(record.headers)["event-id"] for record in records]


async def test_rows_of_another_replica_are_found(
    database: Database, broker: LocalBroker, postgres: Postgres
) -> None:
    another = a_database(postgres)
    async with relaying(database, broker):
        await write(another, 3)
        await until(lambda: published(database))
    await another.close()


async def test_facts_wait_while_the_broker_is_away(
    database: Database, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "REQUEST_SECONDS", 0.3)
    failures = told("aiagent_outbox_failures_total")
    async with relaying(database, broker):
        events = await write(database)
        await until(lambda: published(database))
        broker.kill()
        events = await write(database, 450)

        async def noticed() -> bool:
            age = told("aiagent_outbox_oldest_seconds")
            return age > 0 and told("aiagent_outbox_failures_total") > failures + 1

        await until(noticed)
        assert await unpublished(database) == set(events)
        await broker.start()
        await until(lambda: published(database))
        await until(lambda: _is(lambda: told("aiagent_outbox_oldest_seconds") == 0))
    records = await read(broker.broker, FACTS.name, map(str, events))
    assert len({record.partition for record in records}) == FACTS.partitions


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_two_relays_share_the_work(database: Database, broker: LocalBroker, postgres: Postgres) -> None:
    another = a_database(postgres)
    async with relaying(database, broker), relaying(another, broker):
        written = await asyncio.gather(*(write(each, 40) for each in (database, another) for _ in range(10)))
        await until(lambda: published(database))
    await another.close()
    events = [str(event) for batch in written for event in batch]
    records = await read(broker.broker, FACTS.name, events)
    assert sorted(dict(record.headers)["event-id"].decode() for record in records) == sorted(events)


async def test_a_relay_killed_before_it_marks_only_repeats(
    database: Database, broker: LocalBroker, postgres: Postgres
) -> None:
    events = await write(database, 5)
    urls = [postgres.url(f"{SCHEMA}_{role}") for role in ("application", "system")]
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.kernel.dying_relay", *urls, str(broker.port)
    )
    assert await dying.wait() == -signal.SIGKILL
    assert await unpublished(database) == set(events)
    async with relaying(database, broker):
        await until(lambda: published(database))
        last = await write(database)
        await until(lambda: published(database))
    records = await read(broker.broker, FACTS.name, map(str, last), at_least=11)
    seen = [dict(record.headers)["event-id"].decode() for record in records]
    assert sorted(seen) == sorted(2 * [str(event) for event in events] + [str(last[0])])


async def test_rows_are_purged_in_their_time(database: Database) -> None:
    statements = Outbox(outbox)
    ages = {
        "published long ago": (KEPT_PUBLISHED + timedelta(minutes=1), True),
        "published now": (KEPT_PUBLISHED - timedelta(minutes=1), True),
        "waiting": (KEPT_PUBLISHED + timedelta(minutes=1), False),
        "waiting for long": (KEPT_UNWANTED + timedelta(minutes=1), False),
    }
    async with database.system() as connection:
        for key, (age, is_published) in ages.items():
            time = sa.func.now() - age
            values = {"create_time": time, "publish_time": time if is_published else None}
            await connection.execute(
                sa.insert(outbox).values(
                    id=uuid4(), organization_id=uuid4(), topic="t", key=key, payload=b"", **values
                )
            )

    async def left() -> set[str]:
        async with database.system() as connection:
            return set(await connection.scalars(sa.select(outbox.c.key)))

    async with database.system() as connection:
        assert await statements.purge(connection, unwanted=False) == 1
    assert await left() == ages.keys() - {"published long ago"}
    async with database.system() as connection:
        assert await statements.purge(connection, unwanted=True) == 1
    assert await left() == {"published now", "waiting"}


async def test_what_no_broker_would_take_is_refused_at_once(database: Database) -> None:
    caller = a_caller()
    with pytest.raises(ValueError, match="too many"):
        async with database.tenant(caller) as connection:
            payload = bytes(MOST_PAYLOAD_BYTES + 1)
            await _WRITER.add(connection, FACTS.name, "key", payload, caller.organization_id)
