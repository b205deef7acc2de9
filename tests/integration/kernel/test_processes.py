"""Every service is started in one way: it tells its metrics, waits for its database, and leaves when it is asked to."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aiagent.auth.v1 import auth_service_pb2
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from deploy.local.ports import free_port
from services.kernel.grpc import error_from_rpc

pytestmark = pytest.mark.integration
SERVICES = ("auth", "executor", "scheduler", "session")
NOWHERE = "postgresql://somebody:hush@127.0.0.1:9/nothing"
STATES = health_pb2.HealthCheckResponse


def a_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


class Process:
    """A service's process, and where it is asked what."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.listen = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "AIAGENT_DRAIN_SECONDS": "1",
            "AIAGENT_METRICS_LISTEN": self.metrics,
            f"AIAGENT_{name.upper()}_LISTEN": self.listen,
            f"AIAGENT_{name.upper()}_DATABASE_URL": NOWHERE,
            f"AIAGENT_{name.upper()}_SYSTEM_DATABASE_URL": NOWHERE,
            "AIAGENT_REDIS_URL": "redis://127.0.0.1:9",
            f"AIAGENT_{name.upper()}_ENCRYPTION_KEY": a_key(),
            "AIAGENT_SERVICE_KEY": a_key(),
            "AIAGENT_STATE_DIR": str(directory / "state"),
            "AIAGENT_WORKSPACE_ROOT": str(directory / "workspaces"),
            "AIAGENT_BLOB_URL": (directory / "blobs").as_uri(),
        }
        self.process: asyncio.subprocess.Process

    async def line(self, event: str) -> dict[str, Any]:
        """The next line of its log that tells of an event."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return told
        raise AssertionError(f"{self.name} has ended")

    async def told_metrics(self) -> str:
        async with aiohttp.ClientSession() as client:
            while True:
                try:
                    async with client.get(f"http://{self.metrics}/metrics") as answer:
                        return await answer.text()
                except aiohttp.ClientError:
                    assert self.process.returncode is None, self.name
                    await asyncio.sleep(0.1)

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        await self.process.communicate()
        return self.process.returncode or 0


@asynccontextmanager
async def running(name: str, directory: Path) -> AsyncIterator[Process]:
    service = Process(name, directory)
    service.process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{name}", "serve"),
        env=service.environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            yield service
    finally:
        if service.process.returncode is None:
            service.process.kill()
            await service.process.wait()


@pytest.mark.parametrize("name", SERVICES)
async def test_each_service_tells_its_metrics(name: str, tmp_path: Path) -> None:
    async with running(name, tmp_path) as service:
        told = await service.told_metrics()
        assert "# TYPE aiagent_grpc_requests_total counter" in told
        assert await service.end() == 0


@pytest.mark.parametrize("name", ["auth", "scheduler", "session"])
async def test_without_its_database_it_waits_and_is_not_ready(name: str, tmp_path: Path) -> None:
    async with running(name, tmp_path) as service:
        first = await service.line("waiting for the database")
        second = await service.line("waiting for the database")
        assert (first["reason"], first["attempt"], second["attempt"]) == ("DATABASE_UNAVAILABLE", 1, 2)
        assert second["next_seconds"] == 2 * first["next_seconds"]
        async with grpc.aio.insecure_channel(service.listen) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == STATES.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await AuthServiceStub(channel).GetJwks(auth_service_pb2.GetJwksRequest())
            if name == "auth":
                error = error_from_rpc(refused.value)
                assert (error.kind.value, error.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
        assert service.process.returncode is None
        assert await service.end() == 0


@pytest.mark.parametrize("name", SERVICES)
async def test_a_wrong_setting_is_one_line(name: str, tmp_path: Path) -> None:
    service = Process(name, tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{name}", "serve"),
        env={**service.environment, "AIAGENT_DRAIN_SECONDS": "soon"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    (line,) = errors.decode().splitlines()
    assert line.startswith("error: AIAGENT_DRAIN_SECONDS: ")
