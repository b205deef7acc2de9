"""The gate before the passwords."""

from __future__ import annotations

import asyncio

import pytest

from services.auth.usecases.gate import Gate
from services.kernel.errors import ServiceError

pytestmark = pytest.mark.unit


async def test_so_many_are_in_and_so_many_wait() -> None:
    gate = Gate(capacity=2, waiting=1)
    leave = asyncio.Event()
    inside = 0

    async def visit() -> None:
        nonlocal inside
        async with gate:
            inside += 1
            await leave.wait()
            inside -= 1

    visits = [asyncio.create_task(visit()) for _ in range(3)]
    while inside < 2:
        await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await visit()
    assert (caught.value.kind.value, caught.value.reason) == ("UNAVAILABLE", "OVERLOADED")
    assert inside == 2
    leave.set()
    await asyncio.gather(*visits)
    async with gate:
        pass


async def test_who_gives_up_waiting_makes_room() -> None:
    gate = Gate(capacity=1, waiting=1)
    async with gate:
        for _ in range(3):
            waiting = asyncio.create_task(gate.__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    async with gate:
        pass
