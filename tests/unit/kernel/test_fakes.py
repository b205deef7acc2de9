"""The driven clock and the ids that tests rely on."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from services.kernel.clock import SystemClock
from services.kernel.ids import Uuid7Source, new_id
from services.kernel.testing import FakeClock, SequentialIds

pytestmark = pytest.mark.unit


async def test_sleepers_wake_in_order_at_their_time() -> None:
    clock = FakeClock()
    start = clock.monotonic()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *seconds: float) -> None:
        for each in seconds:
            await clock.sleep(each)
            woken.append((name, clock.monotonic() - start))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 2, 2))
        group.create_task(sleeper("b", 3))
        await clock.wait_for_sleepers(2)
        await clock.advance(1)
        assert woken == []
        await clock.advance(3)
    assert woken == [("a", 2), ("b", 3), ("a", 4)]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(10))
    await clock.wait_for_sleepers()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await clock.advance(20)


def test_ids_ascend_and_are_version_seven() -> None:
    for source in (Uuid7Source(), SequentialIds()):
        ids = [source.new_id() for _ in range(1000)]
        assert ids == sorted(set(ids))
        assert {each.version for each in ids} == {7}
    assert abs((new_id().int >> 80) / 1000 - time.time()) < 5


async def test_the_system_clock_is_aware_and_waits() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() is not None
    before = clock.monotonic()
    await clock.sleep(0.01)
    await clock.sleep(-1)
    assert clock.monotonic() - before >= 0.009


def test_grpc_does_not_watch_forks() -> None:
    import services  # noqa: F401

    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
