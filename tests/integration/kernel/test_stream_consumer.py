"""Consumers on a real broker of the local suite: every event arrives, whoever dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import faust
import psutil
import pytest

from deploy.local.ports import free_port
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.outbox import Outbox, OutboxMessage, OutboxWriter
from services.kernel.ids import new_id
from services.kernel.kafka import app as app_module
from services.kernel.kafka import consumer as consumer_module
from services.kernel.kafka import publisher as publisher_module
from services.kernel.kafka.app import Handler, StreamEvent
from services.kernel.kafka.consumer import StreamConsumer
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.relay import OutboxRelay
from services.kernel.telemetry import registry
from services.kernel.testing import a_caller
from tests.integration.kernel.tables import FACTS, outbox
from tests.kafka_broker import LocalBroker

pytestmark = pytest.mark.integration
OF_THE_CONSUMER: ContextVar[bool] = ContextVar("of_the_consumer")


@pytest.fixture(autouse=True)
def quick_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local broker lets a group begin after half of its session's time."""
    monkeypatch.setattr(app_module, "LOCAL_SESSION_SECONDS", 1.0)


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    made = LocalBroker(free_port())
    await made.start()
    yield made
    made.kill()


class Heard:
    """A handler that remembers what it was called with."""

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self.fails_with: Callable[[StreamEvent], Exception | None] = lambda event: None

    async def __call__(self, event: StreamEvent) -> None:
        self.events.append(event)
        if (failure := self.fails_with(event)) is not None:
            raise failure

    @property
    def ids(self) -> set[UUID]:
        return {event.id for event in self.events}


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def consuming(
    broker: LocalBroker, handler: Handler, **options: object
) -> AsyncIterator[StreamConsumer]:
    consumer = StreamConsumer("sample", broker.broker, {FACTS: handler}, SystemClock(), **options)  # type: ignore[arg-type]
    task = asyncio.create_task(consumer.run())
    try:
        await asyncio.wait_for(consumer.ready.wait(), 20)
        yield consumer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def publish(broker: LocalBroker, count: int = 1) -> list[UUID]:
    """Publishes as the relay does; returns the ids."""
    publisher = KafkaPublisher(broker.broker, [FACTS])
    messages = [
        OutboxMessage(new_id(), new_id(), FACTS.name, f"key-{number}", b"fact", datetime.now(UTC))
        for number in range(count)
    ]
    await publisher.open()
    try:
        assert await publisher.publish(messages) == {message.id for message in messages}
    finally:
        await publisher.close()
    return [message.id for message in messages]


def told(name: str, **labels: str) -> float:
    return registry.get_sample_value(name, {"group": "sample", **labels}) or 0.0


def listening(of: psutil.Process) -> set[int]:
    return {each.laddr.port for each in of.net_connections("tcp") if each.status == psutil.CONN_LISTEN}


async def test_every_event_is_handled_also_after_one_that_fails(
    broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    heard = Heard()
    heard.fails_with = lambda event: RuntimeError("of a handler") if event.key == "key-3" else None
    failures = told("aiagent_stream_failures_total", topic=FACTS.name)
    ports = listening(psutil.Process())
    # What is there before a group's first member is read too.
    early = await publish(broker, 10)
    async with consuming(broker, heard):
        late = await publish(broker, 20)
        await until(lambda: heard.ids >= {*early, *late})
        assert listening(psutil.Process()) == ports
    assert told("aiagent_stream_failures_total", topic=FACTS.name) == failures + 2
    # What was handled, or tried to be, is not handed to the group's next member.
    after = Heard()
    async with consuming(broker, after):
        more = await publish(broker, 5)
        await until(lambda: after.ids >= set(more))
    assert after.ids == set(more)
    [event] = [event for event in heard.events if event.id == late[0]]
    assert (event.message, event.key, event.value) == (FACTS.message, "key-0", b"fact")
    assert list(tmp_path.iterdir()) == [], "nothing is left where the process runs"


async def test_a_broker_that_lost_everything_is_found_again(
    broker: LocalBroker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a row written while the broker is away reaches the handler when it is back."""
    monkeypatch.setattr(publisher_module, "REQUEST_SECONDS", 0.5)
    heard, caller, writer = Heard(), a_caller(), OutboxWriter(outbox)
    relay = OutboxRelay(
        "sample", database, Outbox(outbox), KafkaPublisher(broker.broker, [FACTS]), SystemClock()
    )

    async def write(count: int) -> set[UUID]:
        async with database.tenant(caller) as connection:
            return {
                await writer.add(connection, FACTS.name, f"key-{number}", b"fact", caller.organization_id)
                for number in range(count)
            }

    relaying = asyncio.create_task(relay.run())
    async with consuming(broker, heard):
        events = await write(20)
        await until(lambda: heard.ids >= events)
        broker.kill()
        events = await write(20)
        await broker.start()
        await until(lambda: heard.ids >= events, 40)
    relaying.cancel()
    with suppress(asyncio.CancelledError):
        await relaying


async def test_two_members_share_the_partitions(broker: LocalBroker) -> None:
    one, two = Heard(), Heard()
    published: list[UUID] = []
    async with consuming(broker, one):
        async with consuming(broker, two):

            async def both() -> None:
                while not (one.events and two.events):
                    published.extend(await publish(broker, 30))
                    await asyncio.sleep(0.1)

            await asyncio.wait_for(both(), 20)
            one.events.clear()
            two.events.clear()
            events = await publish(broker, 60)
            await until(lambda: one.ids | two.ids >= set(events))
            assert one.ids & set(events)
            assert two.ids & set(events)
            assert not one.ids & two.ids & set(events)
        events = await publish(broker, 60)
        await until(lambda: one.ids >= set(events), 30)


def tasks_of_the_consumer() -> list[asyncio.Task[object]]:
    return [each for each in asyncio.all_tasks() if OF_THE_CONSUMER in each.get_context()]


async def test_a_consumer_ends_though_its_broker_is_gone(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "STOP_SECONDS", 0.5)
    threads, heard = set(threading.enumerate()), Heard()
    # The loop is shared with whatever other tests keep running: the consumer's tasks are those that inherit its mark.
    mark = OF_THE_CONSUMER.set(True)
    async with consuming(broker, heard):
        OF_THE_CONSUMER.reset(mark)
        assert tasks_of_the_consumer()
        events = await publish(broker, 5)
        await until(lambda: heard.ids >= set(events))
        broker.kill()
    assert set(threading.enumerate()) <= threads
    with suppress(TimeoutError):
        await until(lambda: not tasks_of_the_consumer())
    assert not tasks_of_the_consumer()


async def test_a_consumer_ends_though_a_task_of_it_outlives_a_cancellation(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "STOP_SECONDS", 0.5)
    made, swallowed = consumer_module.application, 0

    def with_a_stubborn_task(*args: object, **options: object) -> faust.App:
        app = made(*args, **options)  # type: ignore[arg-type]

        async def stubborn() -> None:
            nonlocal swallowed
            while swallowed < 3:
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                swallowed += 1

        app.add_future(stubborn())
        return app

    monkeypatch.setattr(consumer_module, "application", with_a_stubborn_task)
    mark = OF_THE_CONSUMER.set(True)
    async with consuming(broker, Heard()):
        OF_THE_CONSUMER.reset(mark)
        broker.kill()
    with suppress(TimeoutError):
        await until(lambda: not tasks_of_the_consumer(), 5)
    assert not tasks_of_the_consumer()
    assert swallowed == 3


async def test_a_silent_consumer_is_started_anew_when_work_waits(broker: LocalBroker) -> None:
    heard, waits = Heard(), True

    async def work_waits() -> bool:
        return waits

    restarts = told("aiagent_stream_restarts_total", why="silent")
    async with consuming(broker, heard, work_waits=work_waits, silent_seconds=0.2) as consumer:
        await until(lambda: told("aiagent_stream_restarts_total", why="silent") > restarts)
        waits = False
        await until(consumer.ready.is_set)
        events = await publish(broker, 3)
        await until(lambda: heard.ids >= set(events))


async def test_of_a_broadcast_each_member_hears_all_from_its_start_on(broker: LocalBroker) -> None:
    # One by one: of records that came in one batch, the local broker takes all but the first for newer than its end.
    early = [event for _ in range(5) for event in await publish(broker)]
    one, two, begun = Heard(), Heard(), []
    options = {"broadcast": True, "listening": lambda: begun.append(1)}
    async with consuming(broker, one, **options), consuming(broker, two, **options):
        assert len(begun) == 2
        late: list[UUID] = []

        async def all_hear() -> None:
            # Where a partition begins is asked for after it was assigned.
            while not (one.events and two.events):
                late.extend(await publish(broker, 6))
                await asyncio.sleep(0.1)

        await asyncio.wait_for(all_hear(), 20)
        events = await publish(broker, 60)
        await until(lambda: one.ids >= set(events) and two.ids >= set(events))
    assert not (one.ids | two.ids) & set(early)
