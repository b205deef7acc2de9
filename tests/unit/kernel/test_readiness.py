"""Health follows the database, after a grace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2

from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.grpc.health import Health
from services.kernel.readiness import GRACE_SECONDS, watch_database
from services.kernel.testing import FakeClock

pytestmark = pytest.mark.unit
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def a_failure(reason: str) -> ServiceError:
    return ServiceError(ErrorKind.UNAVAILABLE, reason=reason, domain="test.aiagent", message="gone")


class Bench:
    """A database that can be taken away, and what health says of it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.health = Health(["aiagent.test.v1.TestService"])
        self.reachable = True
        self.failure: Exception = a_failure("DATABASE_UNAVAILABLE")
        self.task = asyncio.create_task(watch_database(self._check, self.health, self.clock))

    async def _check(self) -> None:
        if not self.reachable:
            raise self.failure

    async def seconds(self, number: float) -> None:
        for _ in range(int(number)):
            await self.clock.wait_for_sleepers()
            await self.clock.advance(1)

    async def status(self, service: str = "") -> int:
        answer = await self.health.servicer.Check(health_pb2.HealthCheckRequest(service=service), None)
        return answer.status


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.health.set_serving(True)
    yield made
    made.task.cancel()


async def test_a_short_absence_changes_nothing(bench: Bench):
    bench.reachable = False
    await bench.seconds(GRACE_SECONDS - 2)
    assert await bench.status() == SERVING
    bench.reachable = True
    await bench.seconds(1)
    bench.reachable = False
    await bench.seconds(GRACE_SECONDS - 2)
    assert await bench.status() == SERVING, "the grace begins anew"


async def test_a_long_absence_is_said_and_its_end_too(bench: Bench):
    bench.reachable = False
    await bench.seconds(GRACE_SECONDS + 1)
    assert await bench.status() == NOT_SERVING
    assert await bench.status("aiagent.test.v1.TestService") == NOT_SERVING
    bench.reachable = True
    await bench.seconds(1)
    assert await bench.status() == SERVING


async def test_a_draining_server_does_not_come_back(bench: Bench):
    bench.reachable = False
    await bench.seconds(GRACE_SECONDS + 1)
    await bench.health.shut_down()
    bench.reachable = True
    await bench.seconds(2)
    assert await bench.status() == NOT_SERVING


async def test_a_busy_database_is_there(bench: Bench):
    bench.reachable, bench.failure = False, a_failure("DATABASE_BUSY")
    await bench.seconds(3 * GRACE_SECONDS)
    assert await bench.status() == SERVING


async def test_what_nobody_expected_counts_as_an_absence_and_does_not_end_the_looking(bench: Bench):
    bench.reachable, bench.failure = False, RuntimeError("nobody has thought of this")
    await bench.seconds(GRACE_SECONDS + 1)
    assert await bench.status() == NOT_SERVING
    bench.reachable = True
    await bench.seconds(1)
    assert await bench.status() == SERVING
