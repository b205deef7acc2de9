"""Time and ids that a test controls."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta
from uuid import UUID


class FakeClock:
    """A Clock that moves only when told."""

    def __init__(self, now: datetime | None = None) -> None:
        """Args: now: where it begins, aware; a fixed day by default."""
        self._now = now or datetime(2026, 1, 1, 12, tzinfo=UTC)
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        """See Clock."""
        return self._now

    def monotonic(self) -> float:
        """See Clock."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Waits until `advance` has come that far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        entry = (self._monotonic + seconds, next(self._order), future)
        heapq.heappush(self._sleepers, entry)
        self._changed.set()
        try:
            await future
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Moves time forward; who sleeps wakes in order, at its own time, and may sleep again meanwhile."""
        target = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, future = heapq.heappop(self._sleepers)
            self._move(due)
            if not future.done():
                future.set_result(None)
            await self._settle()
        self._move(target)
        await self._settle()

    async def wait_for_sleepers(self, count: int = 1) -> None:
        """Returns once at least `count` tasks sleep: then `advance` reaches them."""
        while len(self._sleepers) < count:
            self._changed.clear()
            await self._changed.wait()

    def _move(self, monotonic: float) -> None:
        self._now += timedelta(seconds=monotonic - self._monotonic)
        self._monotonic = monotonic

    @staticmethod
    async def _settle() -> None:
        # A few rounds of the loop, so that what woke up runs to its next wait.
        for _ in range(5):
            await asyncio.sleep(0)


class SequentialIds:
    """An IdSource that counts: …0001, …0002."""

    def __init__(self, first: int = 1) -> None:
        """Args: first: the number of the first id."""
        self._numbers = itertools.count(first)

    def new_id(self) -> UUID:
        """See IdSource. The ids are well-formed UUIDv7."""
        return UUID(int=(0x7 << 76) | (0x2 << 62) | next(self._numbers))
