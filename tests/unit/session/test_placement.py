"""Which executor takes a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
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


def kept(name: str, background: int, *, busy: int | None = None, idle: tuple[UUID, ...] = ()) -> ExecutorInfo:
    """One with eight places, of which six may be taken by sessions in the background."""
    info = executor(name, background if busy is None else busy, room=8, idle=idle)
    return replace(info, max_background_clients=6, background_clients=background)


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


@pytest.mark.parametrize(
    ("executors", "chosen"),
    [
        ([kept("a", 5)], "a"),
        ([kept("a", 6)], None),
        ([kept("a", 6), kept("b", 5, busy=7)], "b"),
        # Turns at a screen hold them up only where they take all places.
        ([kept("a", 1, busy=7)], "a"),
        ([kept("a", 0, busy=8)], None),
        ([kept("a", 6, idle=(SESSION,)), kept("b", 5)], "b"),
        ([executor("a", 3)], "a"),
    ],
)
def test_sessions_in_the_background_leave_some_places_free(executors, chosen):
    found = choose_executor(executors, SESSION, None, background=True)
    assert (found.executor_id if found else None) == chosen


def test_interactive_sessions_may_have_every_place():
    assert choose_executor([kept("a", 6, busy=7)], SESSION, None) is not None
    assert choose_executor([kept("a", 6, busy=8)], SESSION, None) is None


class Waiting:
    """Drivers of one replica that find no place."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.room = Room()
        self.woken: list[asyncio.Event] = []
        self.looks: list[str] = []

    def driver(self, name: str, *, background: bool = False) -> asyncio.Task[None]:
        search, woken = Search(self.room, self.clock), asyncio.Event()
        self.woken.append(woken)

        async def look_for_ever() -> None:
            while True:
                woken.clear()
                await search.wait(woken, background=background)
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


async def test_the_background_does_not_stand_before_those_who_may_have_the_place():
    waiting = Waiting()
    drivers = [waiting.driver(name, background=True) for name in "ab"] + [waiting.driver("c")]
    await waiting.clock.wait_for_sleepers(3)
    waiting.room.freed()
    await waiting.until(lambda: len(waiting.looks) == 2)
    assert sorted(waiting.looks) == ["a", "c"]
    for driver in drivers:
        driver.cancel()
