"""Items of an attempt that come while others are being committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from services.session.domain.turn_items import BlockDelta, Noticed, TurnItem
from services.session.usecases.driver.reading import AHEAD_CHARACTERS, AHEAD_ITEMS, read_ahead

pytestmark = pytest.mark.unit


def notice(offset: int) -> TurnItem:
    return Noticed(offset, "CODE", "text")


class Executor:
    """Sends batches whenever a test says so."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[Sequence[TurnItem] | Exception | None] = asyncio.Queue()
        self.sent = 0
        self.closed = False

    async def stream(self) -> AsyncGenerator[Sequence[TurnItem]]:
        try:
            while (batch := await self.batches.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                self.sent += 1
                yield batch
        finally:
            self.closed = True

    def send(self, *batches: Sequence[TurnItem] | Exception | None) -> None:
        for batch in batches:
            self.batches.put_nowait(batch)

    async def settle(self) -> None:
        """Lets everybody go on until all stand still."""
        for _ in range(10):
            await asyncio.sleep(0)


def offsets(batch: Sequence[TurnItem]) -> list[int]:
    return [item.offset for item in batch]


async def test_each_item_is_there_as_soon_as_it_comes_and_those_of_a_busy_time_together() -> None:
    executor = Executor()
    async with aclosing(read_ahead(executor.stream())) as batches:
        executor.send([])
        assert await anext(batches) == []
        executor.send([notice(1)])
        assert offsets(await anext(batches)) == [1]
        executor.send([notice(2)], [notice(3), notice(4)], [], [notice(5)])
        await executor.settle()  # The reader of `batches` is busy meanwhile.
        assert offsets(await anext(batches)) == [2, 3, 4, 5]
        executor.send(None)
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert executor.closed


async def test_what_came_before_a_break_comes_before_its_error() -> None:
    executor = Executor()
    executor.send([notice(1)], [notice(2)], ConnectionError("broken"))
    seen: list[int] = []
    with pytest.raises(ConnectionError, match="broken"):
        async with aclosing(read_ahead(executor.stream())) as batches:
            async for batch in batches:
                seen += offsets(batch)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("batch", "most"),
    [([notice(1)], AHEAD_ITEMS), ([BlockDelta(1, 0, False, 0, "x" * (AHEAD_CHARACTERS // 4))], 4)],
)
async def test_no_more_is_read_ahead_than_a_transaction_may_hold(batch: list[TurnItem], most: int) -> None:
    executor = Executor()
    executor.send(*[batch] * (3 * most))
    async with aclosing(read_ahead(executor.stream())) as batches:
        assert 1 <= len(await anext(batches)) <= most
        before = executor.sent
        await executor.settle()
        assert executor.sent - before <= most
        assert len(await anext(batches)) == most


async def test_leaving_ends_the_stream() -> None:
    executor = Executor()
    executor.send([notice(1)])
    async with aclosing(read_ahead(executor.stream())) as batches:
        await anext(batches)
    assert executor.closed


async def test_leaving_ends_a_stream_that_waits_for_room() -> None:
    executor = Executor()
    stream = executor.stream()  # Held here: it would be closed with its last reference.
    executor.send([notice(0)], *[[notice(1)] * 2 * AHEAD_ITEMS] * 2)
    async with aclosing(read_ahead(stream)) as batches:
        await anext(batches)
        await executor.settle()
    assert executor.closed
