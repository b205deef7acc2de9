"""A service without its database does not serve, and says so; every other loss leaves it degraded but serving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.supervision import repeat

_log = structlog.get_logger(__name__)
_AWAY: Final = frozenset({"DATABASE_UNAVAILABLE", "DATABASE_BUSY"})
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
GRACE_SECONDS: Final = 10.0
"""A restart of PostgreSQL is over by then; callers meanwhile get UNAVAILABLE and try again."""
_ANSWER_SECONDS: Final = 3.0


class Health(Protocol):
    """Where it is told whether the process serves: the health service of its server, or `Readiness`."""

    async def set_serving(self, serving: bool) -> None:
        """Tells it."""


class Readiness:
    """Whether a process without a server does its work."""

    def __init__(self) -> None:
        self.ready = False
        self._over = False

    async def set_serving(self, serving: bool) -> None:
        """See `Health`."""
        self.ready = serving and not self._over

    def shut_down(self) -> None:
        """Not ready for good."""
        self.ready, self._over = False, True


async def once_reached(prepare: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Does what a start needs the database for, again and again until the database is there.

    Nothing is gained by ending instead: whoever supervises the process would start it to the same end.

    Args:
        prepare: what is to be done; it may be repeated. What is no absence of the database it raises for good.
        clock: waits between two attempts, twice as long after each.
    """
    pause, attempt = FIRST_PAUSE_SECONDS, 1
    while True:
        try:
            await prepare()
        except ServiceError as error:
            if error.reason not in _AWAY:
                raise
            _log.warning("waiting for the database", reason=error.reason, attempt=attempt, next_seconds=pause)
        else:
            if attempt > 1:
                _log.info("the database is there", attempt=attempt)
            return
        await clock.sleep(pause)
        pause, attempt = min(2 * pause, LONGEST_PAUSE_SECONDS), attempt + 1


async def watch_database(check: Callable[[], Awaitable[None]], health: Health, clock: Clock) -> None:
    """Turns health to NOT_SERVING when the database has been away for `GRACE_SECONDS`, and back. Until cancelled.

    Args:
        check: raises ServiceError when the database cannot be reached.
        health: of the service's server, or of a process without one.
        clock: waits between looks.
    """
    await repeat("readiness", _Looks(check, health, clock).look, clock, LOOK_SECONDS)


class _Looks:
    """What is known of the database."""

    def __init__(self, check: Callable[[], Awaitable[None]], health: Health, clock: Clock) -> None:
        self._check = check
        self._health = health
        self._clock = clock
        self._reached = clock.monotonic()
        self._serving = True

    async def look(self) -> None:
        """Looks once."""
        try:
            reached = await self._is_reached()
        except Exception:
            # Nobody knows what this is; but it is no answer of a database that can be worked with.
            await self._absent()
            raise
        if reached:
            await self._present()
        else:
            await self._absent()

    async def _is_reached(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._check()
        except TimeoutError:
            return False
        except ServiceError as error:
            # Who says that it is busy is there.
            return error.reason == "DATABASE_BUSY"
        return True

    async def _present(self) -> None:
        self._reached = self._clock.monotonic()
        if not self._serving:
            self._serving = True
            _log.info("the database is back; serving")
            await self._health.set_serving(True)

    async def _absent(self) -> None:
        away = self._clock.monotonic() - self._reached
        if self._serving and away >= GRACE_SECONDS:
            self._serving = False
            _log.error("no database; not serving", seconds=round(away))
            await self._health.set_serving(False)
