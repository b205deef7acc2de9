"""Faust applications for consumers: the one place that knows its settings, and the traps they avoid.

What was measured of Faust 0.15 and shapes this (0079): an exception in an agent acknowledges the message; a message
that is held up for long stalls the consumer in silence; a timer's exception ends the application; timers forget. So an
agent here is only ever woken: it calls a handler, which claims work from PostgreSQL and returns, catches whatever comes
of it, and gives it `HANDLE_SECONDS`. What a failed, a doubled or a lost message was about is found by the claims that
its service makes by itself. Handlers are called at least once for each event, and must bear repetitions of an id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import faust
import structlog
from faust.transport.drivers import aiokafka as driver
from faust.types import StreamT
from mode.threads import WorkerThread
from prometheus_client import Counter

from services.kernel.ids import new_id
from services.kernel.kafka.headers import EVENT_ID, MESSAGE_TYPE, ORGANIZATION_ID
from services.kernel.kafka.settings import Broker
from services.kernel.kafka.topics import Topic
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
HANDLE_SECONDS: Final = 10.0
"""How long one event may take."""
COMMIT_SECONDS: Final = 1.0
"""Between two commits of offsets: what is repeated when a consumer is killed."""
SESSION_SECONDS: Final = 20.0
"""After this long without a heartbeat a member is gone, and others get its partitions."""
LOCAL_SESSION_SECONDS = 4.0
"""The same for the local broker, which lets a group begin only after half of it."""
LOCAL_FETCH_MS: Final = 20
"""The local broker does not wake a waiting fetch when something is produced, and Faust fixes the wait at 1.5 s."""
EVENTS: Final = Counter(
    "aiagent_stream_events_total", "Events that were handled.", ("group", "topic"), registry=registry
)
FAILURES: Final = Counter(
    "aiagent_stream_failures_total",
    "Events whose handler failed or took too long; they are not handed to it again.",
    ("group", "topic"),
    registry=registry,
)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event as it was received.

    Attributes:
        id: What it is one event by, however often it comes.
        organization_id: The tenant.
        message: The full name of the protobuf message.
        key: The record's key.
        value: The serialized message.
    """

    id: UUID
    organization_id: UUID
    message: str
    key: str
    value: bytes


Handler = Callable[[StreamEvent], Awaitable[None]]


def application(
    group: str, broker: Broker, handlers: Mapping[Topic, Handler], *, broadcast: bool = False
) -> faust.App:
    """Makes an application that is started once, in the running loop, by `await app.start()`.

    Args:
        group: The consumer group: of its members each partition has one.
        broker: Where from.
        handlers: What is called for the events of each topic; one at a time for each topic.
        broadcast: Every process hears every event, from its start on: the application is the one member of a group of
            its own, which commits nothing. Brokers forget such a group when its member is gone (0084).
    """
    session = LOCAL_SESSION_SECONDS if broker.local else SESSION_SECONDS
    app = _App(
        f"{group}-{new_id()}" if broadcast else group,
        broker=[f"kafka://{server}" for server in broker.servers],
        broker_credentials=_credentials(broker),
        autodiscover=False,
        # No port: the embedded application answers nothing.
        web_enabled=False,
        # Topics are declared by us, with what they are to have; and no topic of a leader that nobody needs.
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        processing_guarantee="at_least_once",
        consumer_auto_offset_reset="latest" if broadcast else "earliest",
        broker_commit_interval=COMMIT_SECONDS,
        # Waiting so would be for ever once a broker has come back without what was in flight; see `consumer.py`.
        stream_wait_empty=False,
        broker_session_timeout=session,
        broker_heartbeat_interval=session / 4,
    )
    app.transport = _transport(broker.local, broadcast)(app.conf.broker_consumer, app)
    for topic, handler in handlers.items():
        channel = app.topic(
            topic.name,
            key_serializer="raw",
            value_serializer="raw",
            key_type=bytes,
            value_type=bytes,
            internal=True,
            partitions=topic.partitions,
        )
        app.agent(channel, name=f"{group}.{topic.name}")(_agent(group, topic, handler))
    app.finalize()
    return app


def _agent(group: str, topic: Topic, handler: Handler) -> Callable[[StreamT[bytes]], Awaitable[None]]:
    handled, failed = EVENTS.labels(group, topic.name), FAILURES.labels(group, topic.name)

    async def agent(stream: StreamT[bytes]) -> None:
        async for record in stream.events():
            try:
                event = _event(record)
                async with asyncio.timeout(HANDLE_SECONDS):
                    await handler(event)
            except Exception:
                # Whatever it is: raised here, it would end the stream and acknowledge the message all the same.
                failed.inc()
                _log.exception("event not handled", group=group, topic=topic.name)
            else:
                handled.inc()

    return agent


def _event(record: Any) -> StreamEvent:
    headers = dict(record.headers)
    return StreamEvent(
        id=UUID(headers[EVENT_ID].decode()),
        organization_id=UUID(headers[ORGANIZATION_ID].decode()),
        message=headers[MESSAGE_TYPE].decode(),
        key=(record.key or b"").decode(),
        value=record.value,
    )


def _credentials(broker: Broker) -> Any:
    if broker.sasl_mechanism is not None:
        return faust.SASLCredentials(
            username=broker.sasl_username,
            password=broker.sasl_password.get_secret_value(),
            ssl_context=broker.tls,
            mechanism=broker.sasl_mechanism,
        )
    return faust.SSLCredentials(broker.tls) if broker.tls is not None else None


class _App(faust.App):
    """An application that keeps nothing on the disk: there are no tables, and no directory is made for them."""

    def _create_directories(self) -> None:
        pass


class _Worker(WorkerThread):
    """A consumer's thread, which may be torn down: that is no error to be printed."""

    def run(self) -> None:
        with suppress(asyncio.CancelledError):
            super().run()


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    Worker = _Worker


class _LocalFetching(_ConsumerThread):
    """Faust fixes how long a fetch waits; no setting reaches it. For the local broker alone."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = LOCAL_FETCH_MS
        return consumer


class _NotCommitting(_ConsumerThread):
    """A group that has committed nothing is forgotten with its last member."""

    async def commit(self, offsets: Mapping[Any, int]) -> bool:
        self.tp_last_committed_at.update(dict.fromkeys(offsets, time.monotonic()))
        return True


class _LocalFetchingNotCommitting(_LocalFetching, _NotCommitting):
    pass


_THREADS: Final = {
    (False, False): _ConsumerThread,
    (True, False): _LocalFetching,
    (False, True): _NotCommitting,
    (True, True): _LocalFetchingNotCommitting,
}


def _transport(local: bool, broadcast: bool) -> type[driver.Transport]:
    thread = _THREADS[local, broadcast]

    class Consumer(driver.Consumer):
        def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
            return thread(self, loop=self.loop, beacon=self.beacon)

    class Transport(driver.Transport):
        pass

    # Assigned so: in a class body the name would stand for itself.
    Transport.Consumer = cast(Any, Consumer)
    return Transport
