"""Worker processes, `python -m services.scheduler worker`, on a real database and a real broker, without sessions:
a run that one has begun stays RUNNING, since nobody answers its calls."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from deploy.local.ports import free_port
from services.kernel.identity import generate_private_key, private_key_to_text
from services.kernel.kafka.settings import Broker
from tests.databases import Copy
from tests.integration.auth.harness import an_encryption_key

_START_SECONDS = 60.0


def variables(databases: Copy, broker: Mapping[str, str]) -> dict[str, str]:
    """What a scheduler's process is told; broker: the variables that name it."""
    return {
        "AIAGENT_SCHEDULER_DATABASE_URL": databases.url("scheduler_application"),
        "AIAGENT_SCHEDULER_SYSTEM_DATABASE_URL": databases.url("scheduler_system"),
        "AIAGENT_SERVICE_KEY": private_key_to_text(generate_private_key()),
        "AIAGENT_SESSION_TARGETS": "127.0.0.1:9",
        "AIAGENT_DRAIN_SECONDS": "1",
        # Runs that have begun stay under way here.
        "AIAGENT_SCHEDULER_MAX_RUNS_PER_USER": "0",
        "AIAGENT_SCHEDULER_ENCRYPTION_KEY": an_encryption_key(),
        **broker,
    }


def local(broker: Broker) -> dict[str, str]:
    """The variables that name the local suite's broker."""
    return {
        "AIAGENT_KAFKA_URL": f"kafka://{broker.servers[0]}",
        "AIAGENT_KAFKA_LOCAL_BROKER": "true",
        "AIAGENT_KAFKA_DECLARE_TOPICS": "true",
    }


class WorkerProcess:
    """One of them."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.metrics = f"127.0.0.1:{free_port()}"
        self._environment = {
            "PATH": os.environ["PATH"],
            **environment,
            "AIAGENT_METRICS_LISTEN": self.metrics,
        }
        self._log = log
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.scheduler", "worker"),
                cwd=self._log.parent,
                env=self._environment,
                stderr=log,
            )

    async def asked(self, path: str) -> tuple[int, str]:
        """Status and body of an answer, once it answers."""
        async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession() as client:
            while True:
                try:
                    async with client.get(f"http://{self.metrics}{path}") as answer:
                        return answer.status, await answer.text()
                except aiohttp.ClientError:
                    assert self.process.returncode is None, self._log.read_text()
                    await asyncio.sleep(0.05)

    async def told(self, metric: str) -> float:
        """A metric, all labels together."""
        _, text = await self.asked("/metrics")
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    async def ready(self) -> None:
        """Waits until it takes runs."""
        async with asyncio.timeout(_START_SECONDS):
            while (await self.asked("/ready"))[0] != 200:
                await asyncio.sleep(0.05)

    async def end(self, *, kill: bool = False) -> int:
        """Ends it; returns its status."""
        if self.process.returncode is None:
            (self.process.kill if kill else self.process.terminate)()
        return await self.process.wait()


@asynccontextmanager
async def worker_process(environment: Mapping[str, str], directory: Path) -> AsyncIterator[WorkerProcess]:
    """Runs one."""
    made = WorkerProcess(environment, directory / "worker.log")
    await made.start()
    try:
        yield made
    finally:
        await made.end(kill=True)
