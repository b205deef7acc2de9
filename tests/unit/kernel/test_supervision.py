"""Work in the background goes on after whatever happens to it, and each failure is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from services.kernel.supervision import BACKGROUND_FAILURES, repeat, supervise
from services.kernel.testing import FakeClock

pytestmark = pytest.mark.unit


def failures(name: str) -> float:
    return BACKGROUND_FAILURES.labels(name)._value.get()


class Failing:
    """Work that fails so many times before it succeeds."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise RuntimeError("nobody has thought of this")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


async def test_work_that_fails_is_begun_again_after_a_pause(name: str):
    clock, work = FakeClock(), Failing(2)
    task = asyncio.create_task(supervise(name, work, clock))
    await clock.wait_for_sleepers()
    assert work.calls == 1, "not at once: what fails always must not spin"
    for _ in range(2):
        await clock.wait_for_sleepers()
        await clock.advance(1)
    await task
    assert work.calls == 3
    assert failures(name) == 2


async def test_a_step_that_fails_does_not_end_the_repetition(name: str):
    clock, step = FakeClock(), Failing(2)
    task = asyncio.create_task(repeat(name, step, clock, 5.0))
    for _ in range(3):
        await clock.wait_for_sleepers()
        await clock.advance(5)
    assert step.calls == 4
    assert failures(name) == 2
    task.cancel()


def supervised(work: Callable[[], Awaitable[None]]) -> Coroutine[Any, Any, None]:
    return supervise("cancelled", work, FakeClock())


def repeated(work: Callable[[], Awaitable[None]]) -> Coroutine[Any, Any, None]:
    return repeat("cancelled", work, FakeClock(), 1.0)


@pytest.mark.parametrize("how", [supervised, repeated])
async def test_cancelling_ends_it(how: Callable[..., Coroutine[Any, Any, None]]):
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(how(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
