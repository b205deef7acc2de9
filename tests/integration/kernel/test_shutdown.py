"""SIGTERM to a real process: NOT_SERVING, no new calls, running ones end, the process leaves with 0."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from services.kernel.grpc import error_from_rpc
from tests.integration.kernel.servicers import SESSION_ID

pytestmark = pytest.mark.integration
GET = pb.GetSessionRequest(session_id=SESSION_ID)


class Process:
    """The process of `one_service`, and stubs to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.channel: grpc.aio.Channel
        self.stub: Any

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"release\n")


@asynccontextmanager
async def one_service(grace_seconds: float) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.integration.kernel.one_service", str(grace_seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    service = Process(process)
    try:
        async with asyncio.timeout(60):
            port = await service.line()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as service.channel:
                service.stub = SessionServiceStub(service.channel)
                yield service
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_drains() -> None:
    async with one_service(grace_seconds=30) as service:
        unary = asyncio.ensure_future(service.stub.GetSession(GET))
        assert await service.line() == "held"
        watch = aiter(service.stub.WatchSession(pb.WatchSessionRequest(session_id=SESSION_ID)))
        await anext(watch)
        health = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING

        service.process.send_signal(signal.SIGTERM)
        assert await service.line() == "drain"
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert len([response async for response in watch]) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.GetSession(GET)
        assert error_from_rpc(caught.value).reason == "DRAINING"
        assert service.process.returncode is None

        service.release()
        assert (await unary).id == SESSION_ID
        assert [await service.line(), await service.line()] == ["drained", "stopped"]
        assert await service.process.wait() == 0


async def test_the_grace_ends_what_does_not_end_itself() -> None:
    async with one_service(grace_seconds=0.2) as service:
        unary = asyncio.ensure_future(service.stub.GetSession(GET))
        assert await service.line() == "held"
        service.process.send_signal(signal.SIGTERM)
        assert [await service.line() for _ in range(3)] == ["drain", "cut", "stopped"]
        with pytest.raises(grpc.aio.AioRpcError):
            await unary
        assert await service.process.wait() == 0


async def test_a_second_signal_ends_the_drain_at_once() -> None:
    async with one_service(grace_seconds=600) as service:
        unary = asyncio.ensure_future(service.stub.GetSession(GET))
        assert await service.line() == "held"
        service.process.send_signal(signal.SIGTERM)
        assert await service.line() == "drain"
        service.process.send_signal(signal.SIGTERM)
        assert await service.line() == "stopped"
        with pytest.raises(grpc.aio.AioRpcError):
            await unary
        assert await service.process.wait() == 0
