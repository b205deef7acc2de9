"""A service without its database does not serve, and says so; every other loss leaves it degraded but serving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.grpc.health import Health

_log = structlog.get_logger(__name__)
LOOK_SECONDS: Final = 1.0
GRACE_SECONDS: Final = 10.0
"""A restart of PostgreSQL is over by then; callers meanwhile get UNAVAILABLE and try again."""
_ANSWER_SECONDS: Final = 3.0


async def watch_database(check: Callable[[], Awaitable[None]], health: Health, clock: Clock) -> None:
    """Turns health to NOT_SERVING when the database has been away for `GRACE_SECONDS`, and back. Until cancelled.

    Args:
        check: raises ServiceError when the database cannot be reached.
        health: of the service's server.
        clock: waits between looks.
    """
    reached, serving = clock.monotonic(), True
    while True:
        await clock.sleep(LOOK_SECONDS)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await check()
        except (ServiceError, TimeoutError):
            if serving and clock.monotonic() - reached >= GRACE_SECONDS:
                serving = False
                _log.error("no database; not serving", seconds=round(clock.monotonic() - reached))
                await health.set_serving(False)
        else:
            reached = clock.monotonic()
            if not serving:
                serving = True
                _log.info("the database is back; serving")
                await health.set_serving(True)
