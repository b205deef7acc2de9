"""A relay that is killed between the broker's acknowledgement and its mark. Arguments: the two URLs, the port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from uuid import UUID

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.outbox import Outbox, OutboxMessage
from services.kernel.kafka.publisher import KafkaPublisher
from services.kernel.kafka.relay import OutboxRelay
from services.kernel.kafka.settings import Broker
from tests.integration.kernel.tables import FACTS, outbox


class Dying(KafkaPublisher):
    async def publish(self, messages: Sequence[OutboxMessage]) -> set[UUID]:
        await super().publish(messages)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


async def main(application_url: str, system_url: str, port: str) -> None:
    broker = Broker((f"127.0.0.1:{port}",), declare_topics=True, local=True)
    database = Database(application_url, system_url)
    await OutboxRelay("sample", database, Outbox(outbox), Dying(broker, [FACTS]), SystemClock()).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
