"""Does what is due, then sleeps until the next thing is, or somebody says that it may be earlier."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError

_log = structlog.get_logger(__name__)
LOOK_SECONDS: Final = 30.0
"""The longest sleep, should a word have been lost."""
LOCKED_SECONDS: Final = 0.02
"""Before looking again at what is due and was locked by another replica."""
AWAY_SECONDS: Final = 1.0
"""Before looking again when the database was not reached."""
ASIDE_SECONDS: Final = 5.0
"""Before looking again at something whose rows a frozen process holds."""
_EARLY_SECONDS: Final = 0.001
"""Timers may be early by as much; a look that finds nothing due costs more."""


class Aside:
    """What is left alone for a while, so that nothing else waits for it."""

    def __init__(self, clock: Clock) -> None:
        """Args: clock: tells when the while is over."""
        self._clock = clock
        self._until: dict[UUID, float] = {}

    def put(self, what: UUID) -> None:
        """Leaves something alone for `ASIDE_SECONDS`."""
        self._until[what] = self._clock.monotonic() + ASIDE_SECONDS

    def ids(self) -> list[UUID]:
        """What is left alone now."""
        now = self._clock.monotonic()
        self._until = {what: until for what, until in self._until.items() if until > now}
        return list(self._until)

    def seconds(self) -> float | None:
        """How long until the first of it is looked at again; None if nothing is left alone."""
        first = min(self._until.values(), default=None)
        return None if first is None else max(0.0, first - self._clock.monotonic())


class DueLoop:
    """The loop. `wake` may be called from the event loop at any time."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[bool]],
        seconds_to_next: Callable[[list[UUID]], Awaitable[float | None]],
        aside: Aside,
        clock: Clock,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Composes the loop.

        Args:
            name: For logs.
            step: Does some of what is due; tells whether there may be more.
            seconds_to_next: How long until something is due that is not among these; 0 or less if something is, None
                if nothing will be.
            aside: What is left alone.
            clock: For waiting.
            look_seconds: The longest sleep.
        """
        self._name = name
        self._step = step
        self._seconds_to_next = seconds_to_next
        self._aside = aside
        self._clock = clock
        self._look_seconds = look_seconds
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Says that something may be due earlier than was known."""
        self._woken.set()

    async def run(self) -> None:
        """Goes on until it is cancelled. While the database is away it waits and tries again."""
        due = True
        while True:
            self._woken.clear()
            try:
                while due and await self._step():
                    pass
                next_due = await self._seconds_to_next(self._aside.ids())
                if not due and next_due is not None and next_due <= 0:
                    due = True
                    continue
                seconds = self._sleep_for(next_due)
            except ServiceError as error:
                _log.warning("the database is waited for", work=self._name, reason=error.reason)
                seconds = AWAY_SECONDS
            # Who has slept to the end need not ask whether something is due.
            due = not await self._woken_within(seconds)

    def _sleep_for(self, next_due: float | None) -> float:
        waits = [self._look_seconds]
        if next_due is not None:
            waits.append(next_due + _EARLY_SECONDS if next_due > 0 else LOCKED_SECONDS)
        if (set_aside := self._aside.seconds()) is not None:
            waits.append(set_aside + _EARLY_SECONDS)
        return min(waits)

    async def _woken_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._woken.wait()
        return False
