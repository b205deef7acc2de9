"""The Kafka-protocol broker of the local suite, for tests: start it, kill it, look what is in it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from deploy.local.servers import Kafka
from services.kernel.kafka.settings import Broker


@dataclass
class LocalBroker:
    """A broker on a port; `start` and `kill` as often as a test likes. It forgets everything between them."""

    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def broker(self) -> Broker:
        return Broker((f"127.0.0.1:{self.port}",), declare_topics=True, local=True)

    async def start(self) -> None:
        self.process = subprocess.Popen(
            Kafka.command(self.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


async def read(
    broker: Broker, topic: str, event_ids: Iterable[str], *, at_least: int = 0
) -> list[ConsumerRecord]:
    """Reads a topic from its beginning until all these events, and so many records, were seen; returns the records."""
    wanted = set(event_ids)

    def enough(records: list[ConsumerRecord]) -> bool:
        return len(records) >= at_least and wanted <= {event_id(record) for record in records}

    return await read_until(broker, topic, enough)


async def read_until(
    broker: Broker, topic: str, enough: Callable[[list[ConsumerRecord]], bool]
) -> list[ConsumerRecord]:
    """Reads a topic from its beginning until what was read is enough; returns it."""
    records: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(
        topic, **broker.client(), auto_offset_reset="earliest", fetch_max_wait_ms=20, enable_auto_commit=False
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            while not enough(records):
                for batch in (await consumer.getmany(timeout_ms=100)).values():
                    records.extend(batch)
    finally:
        await consumer.stop()
    return records


def event_id(record: ConsumerRecord) -> str:
    """What a record is one event by."""
    return dict(record.headers)["event-id"].decode()
