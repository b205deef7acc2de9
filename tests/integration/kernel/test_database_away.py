"""A PostgreSQL that is not there yet, comes, goes and comes back: services wait for it, say so, and go on."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aiagent.auth.v1 import auth_service_pb2
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from deploy.local.postgres import Postgres
from deploy.local.state import StateDirectory
from services.auth import bootstrap as auth
from services.auth.settings import AuthSettings
from services.kernel import readiness
from services.kernel.db.migrations import upgrade
from services.kernel.grpc import error_from_rpc
from services.kernel.identity.keys import generate_private_key, private_key_to_text
from services.scheduler import bootstrap as scheduler
from services.scheduler.settings import SchedulerSettings
from services.session import bootstrap as session
from services.session.settings import SessionSettings
from tests.conftest import ROOT
from tests.integration.auth.harness import an_encryption_key

pytestmark = pytest.mark.integration
STATES = health_pb2.HealthCheckResponse
SCHEMAS = ("auth", "session", "scheduler")


@pytest.fixture
async def stopped_postgres() -> AsyncIterator[Postgres]:
    """A server of this test alone, with its schemas, not running."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-away-"))
    state = StateDirectory(directory)
    state.open()
    server = Postgres(state, state.secrets(), durable=False)
    try:
        await server.start()
        await server.provision()
        for schema in SCHEMAS:
            await upgrade(server.url(f"{schema}_owner"), schema, ROOT / "services" / schema / "migrations")
        await server.stop()
        yield server
    finally:
        await server.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def build(name: str, postgres: Postgres, directory: Path) -> Any:
    if name == "auth":
        return await auth.build(
            AuthSettings(
                _env_file=None,
                auth_listen="127.0.0.1:0",
                auth_database_url=postgres.url("auth_application"),
                auth_system_database_url=postgres.url("auth_system"),
                auth_encryption_key=an_encryption_key(),
                auth_bcrypt_rounds=4,
                state_dir=directory,
            ),
            announce=lambda *_: None,
        )
    if name == "scheduler":
        return await scheduler.build(
            SchedulerSettings(
                _env_file=None,
                scheduler_listen="127.0.0.1:0",
                scheduler_database_url=postgres.url("scheduler_application"),
                scheduler_system_database_url=postgres.url("scheduler_system"),
                scheduler_encryption_key=an_encryption_key(),
                service_key=private_key_to_text(generate_private_key()),
            )
        )
    return await session.build(
        SessionSettings(
            _env_file=None,
            session_listen="127.0.0.1:0",
            session_database_url=postgres.url("session_application"),
            session_system_database_url=postgres.url("session_system"),
            # Away from the first to the last: a hint that is missing keeps nobody from serving.
            redis_url="redis://127.0.0.1:9",
            blob_url=(directory / "blobs").as_uri(),
            workspace_root=directory / "workspaces",
            service_key=private_key_to_text(generate_private_key()),
        )
    )


async def status(port: int) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)


async def until(port: int, expected: int) -> None:
    async with asyncio.timeout(30):
        while await status(port) != expected:
            await asyncio.sleep(0.1)


async def test_services_wait_for_a_database_and_outlive_its_absence(
    stopped_postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "GRACE_SECONDS", 1.0)
    built = [await build(name, stopped_postgres, tmp_path / name) for name in SCHEMAS]
    starting = [asyncio.create_task(service.start()) for service in built]
    try:
        async with asyncio.timeout(30):
            while not all(service.port for service in built):
                await asyncio.sleep(0.02)
        for service in built:
            assert await status(service.port) == STATES.NOT_SERVING
        assert not any(task.done() for task in starting)

        await stopped_postgres.start()
        for service, task in zip(built, starting, strict=True):
            await asyncio.wait_for(task, 30)
            await until(service.port, STATES.SERVING)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{built[0].port}") as channel:
            stub = AuthServiceStub(channel)
            assert (await stub.GetJwks(auth_service_pb2.GetJwksRequest())).keys
            login = auth_service_pb2.LoginRequest(email="nobody@example.org", password="does not matter")

            await stopped_postgres.stop()
            for service in built:
                await until(service.port, STATES.NOT_SERVING)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Login(login)
            assert error_from_rpc(refused.value).reason == "DATABASE_UNAVAILABLE"

            await stopped_postgres.start()
            for service in built:
                await until(service.port, STATES.SERVING)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Login(login)
            assert error_from_rpc(refused.value).kind.value == "UNAUTHENTICATED"
    finally:
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        for service in built:
            await service.stop()
