"""Work in the background that must not die in silence: what fails unexpectedly is logged, counted and begun again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from prometheus_client import Counter

from services.kernel.clock import Clock
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
BACKGROUND_FAILURES: Final = Counter(
    "aiagent_background_failures_total",
    "Unexpected failures of work in the background; it goes on after each.",
    ("work",),
    registry=registry,
)
PAUSE_SECONDS: Final = 1.0
"""Between a failure and the next beginning."""


async def supervise(name: str, work: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Does work that ends when it is done, and begins it again after `PAUSE_SECONDS` whenever it fails.

    Args:
        name: what logs and the counter call it.
        work: what to do; failures it expects it handles itself.
        clock: waits after a failure.
    """
    while not await _attempt(name, work):
        await clock.sleep(PAUSE_SECONDS)


async def repeat(name: str, step: Callable[[], Awaitable[None]], clock: Clock, period_seconds: float) -> None:
    """Does a step again and again, until cancelled; one that fails is followed by the next as any other.

    Args:
        name: what logs and the counter call it.
        step: what to do; failures it expects it handles itself.
        clock: waits between two steps.
        period_seconds: how long, from the end of one step to the next.
    """
    while True:
        await _attempt(name, step)
        await clock.sleep(period_seconds)


async def _attempt(name: str, work: Callable[[], Awaitable[None]]) -> bool:
    try:
        await work()
    except Exception:
        BACKGROUND_FAILURES.labels(name).inc()
        _log.exception("work in the background failed", work=name)
        return False
    return True
