"""Worker processes on Apache Kafka: `make kafka` starts one, or AIAGENT_KAFKA_URL and its like name another."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from services.kernel.db import Database
from services.kernel.kafka.admin import declare
from services.kernel.kafka.settings import Broker, KafkaSettings
from services.scheduler.store.facts import TASK_RUNS
from tests.databases import Copy

from .test_worker_processes import begins_at_once, hears, making, until
from .worker_processes import variables, worker_process

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def broker() -> Broker:
    found = KafkaSettings(_env_file=None).broker()  # type: ignore[call-arg]
    if found is None:
        pytest.skip("AIAGENT_KAFKA_URL names no broker")
    return found


async def groups(broker: Broker) -> set[str]:
    """The groups of workers that the broker knows."""
    admin = AIOKafkaAdminClient(**broker.client())
    await admin.start()
    try:
        found = await admin.list_consumer_groups()
    finally:
        await admin.close()
    return {group[0] for group in found if group[0].startswith("scheduler-workers-")}


async def test_every_worker_hears_of_each_run_and_leaves_no_group(
    databases: Copy, scheduler_database: Database, broker: Broker, tmp_path: Path
) -> None:
    await declare(broker, [TASK_RUNS])
    named = {name: value for name, value in os.environ.items() if name.startswith("AIAGENT_KAFKA_")}
    environment = variables(databases, {**named, "AIAGENT_SCHEDULER_WORKER_PLACES": "1000"})
    before = await groups(broker)
    async with making(scheduler_database, broker) as it:
        async with worker_process(environment, tmp_path) as one, worker_process(environment, tmp_path) as two:
            await asyncio.gather(one.ready(), two.ready())
            await hears(it, one, two)
            await begins_at_once(it)
            pid_file = os.environ.get("KAFKA_PID_FILE")
            if pid_file is not None:
                os.kill(int(Path(pid_file).read_text()), signal.SIGKILL)
                await hears(it, one, two, seconds=120)
                await begins_at_once(it)
            assert len(await groups(broker) - before) >= 2
        # Both were killed. A broker forgets a group without members and offsets when it looks next.
        if pid_file is not None:

            async def forgotten() -> bool:
                return not await groups(broker) - before

            await until(forgotten, pause=1, seconds=60)
