"""Deletes, again and again, what has no more meaning."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.supervision import repeat

_log = structlog.get_logger(__name__)
_PERIOD_SECONDS: Final = 600.0


async def keep_house(purge: Callable[[], Awaitable[int]], clock: Clock) -> None:
    """Purges every ten minutes, for ever; several replicas do not get in each other's way.

    Args:
        purge: deletes a bounded number of rows; returns how many, and is asked again until none.
        clock: waits.
    """

    async def clean() -> None:
        try:
            while await purge():
                pass
        except ServiceError as error:
            _log.warning("nothing purged", reason=error.reason)

    await repeat("housekeeping", clean, clock, _PERIOD_SECONDS)
