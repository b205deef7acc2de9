"""Which executor takes a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from services.kernel.testing import FakeClock
from services.session.domain.turn_items import ExecutorInfo
from services.session.usecases.driver.placement import Room, Search, choose_executor

pytestmark = pytest.mark.unit
SESSION = uuid4()


def executor(
    name: str,
    busy: int = 0,
    *,
    live: int = 0,
    room: int = 4,
    idle: tuple[UUID, ...] = (),
    draining: bool = False,
) -> ExecutorInfo:
    return ExecutorInfo(name, f"{name}:1", uuid4(), room, live, busy, False, frozenset(idle), draining)


@pytest.mark.parametrize(
    ("executors", "last", "lost_on", "chosen"),
    [
        ([executor("a", 1), executor("b", 3, idle=(SESSION,))], "a", None, "b"),
        ([executor("a", 1), executor("b", 0)], "a", None, "b"),
        ([executor("a", 1), executor("b", 1)], "b", None, "b"),
        ([executor("a", 1), executor("b", 1)], None, None, "a"),
        ([executor("a", 0, live=2), executor("b", 0, live=1)], None, None, "b"),
        ([executor("a", 1, room=1), executor("b", 3)], "a", None, "b"),
        ([executor("a", 2, room=8), executor("b", 2, room=4)], "b", None, "a"),
        ([executor("a"), executor("b")], "a", "a", "b"),
        ([executor("a"), executor("b", 1)], "a", "a", "a"),
        ([executor("a")], "a", "a", "a"),
        ([executor("a", 4), executor("b", 4)], "a", None, None),
        ([executor("a", idle=(SESSION,), draining=True), executor("b", 3)], "a", None, "b"),
        ([executor("a", draining=True)], "a", None, None),
        ([], "a", None, None),
    ],
)
def test_the_executor_with_the_client_then_the_least_loaded(executors, last, lost_on, chosen):
    found = choose_executor(executors, SESSION, last, lost_on)
    assert (found.executor_id if found else None) == chosen


class Waiting:
    """Drivers of one replica that find no place."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.room = Room()
        self.woken: list[asyncio.Event] = []
        self.looks: list[str] = []

    def driver(self, name: str) -> asyncio.Task[None]:
        search, woken = Search(self.room, self.clock), asyncio.Event()
        self.woken.append(woken)

        async def look_for_ever() -> None:
            while True:
                woken.clear()
                await search.wait(woken)
                self.looks.append(name)

        return asyncio.create_task(look_for_ever())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)


async def test_who_finds_no_place_waits_longer_each_time():
    waiting = Waiting()
    driver = waiting.driver("a")
    pauses = []
    for look in range(6):
        await waiting.clock.wait_for_sleepers()
        pause = 0.0
        while len(waiting.looks) == look:
            await waiting.clock.advance(0.5)
            pause += 0.5
        pauses.append(pause)
    assert pauses == [0.5, 1, 2, 4, 8, 8]
    driver.cancel()


async def test_a_place_that_is_freed_is_the_longest_waiting_drivers():
    waiting = Waiting()
    drivers = [waiting.driver(name) for name in "abc"]
    await waiting.clock.wait_for_sleepers(3)
    for number in (1, 2):
        waiting.room.freed()
        await waiting.until(lambda number=number: len(waiting.looks) == number)
    assert waiting.looks == ["a", "b"]
    # One that ends instead of looking leaves its turn to the next.
    waiting.room.freed()
    drivers[2].cancel()
    await waiting.until(lambda: len(waiting.looks) == 3)
    assert waiting.looks == ["a", "b", "a"]
    for driver in drivers:
        driver.cancel()


async def test_a_command_is_heard_by_one_that_waits_for_a_place():
    waiting = Waiting()
    driver = waiting.driver("a")
    await waiting.clock.wait_for_sleepers()
    waiting.woken[0].set()
    await waiting.until(lambda: waiting.looks == ["a"])
    driver.cancel()
