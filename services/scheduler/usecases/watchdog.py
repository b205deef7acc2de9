"""Whether runs wait that a worker should have taken long ago, and whether this process should have heard of some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog
from prometheus_client import Gauge

from services.kernel.errors import ServiceError
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
SILENT_SECONDS: Final = 30.0
"""After so long without an event the consumer is mistrusted if there was one."""
ON_ITS_WAY_SECONDS: Final = 5.0
"""What was published since may not have come yet."""
LONG_SECONDS: Final = 10.0
"""Two looks of an idle worker: what has waited for longer was overlooked."""
MEASURE_SECONDS: Final = 10.0
"""Between two measurements."""
OLDEST: Final = Gauge(
    "aiagent_task_runs_oldest_queued_seconds",
    "How long the oldest run that a worker may take has been waiting for one; 0 when there is none.",
    registry=registry,
)


class WaitingRuns(Protocol):
    """The runs of all tenants that wait for a worker."""

    async def oldest_seconds(self) -> float:
        """How long the oldest that may be claimed has been waiting; 0 when there is none.

        Raises:
            ServiceError: UNAVAILABLE, while the database is away.
        """

    async def was_told(self, earliest_seconds: float, latest_seconds: float) -> bool:
        """Whether the broker has acknowledged an event about runs that long ago, between the two. Raises as above."""


class QueueWatch:
    """Measures how long runs wait, and says whether this process should have taken one."""

    def __init__(self, waiting: WaitingRuns, has_place: Callable[[], bool]) -> None:
        """Args: waiting: what waits; has_place: whether this process could carry one more."""
        self._waiting = waiting
        self._has_place = has_place

    async def measure(self) -> float | None:
        """Tells the gauge how long the oldest run has waited, and returns it; None while the database is away."""
        try:
            seconds = await self._waiting.oldest_seconds()
        except ServiceError as error:
            _log.info("not known how long runs wait", reason=error.reason)
            return None
        OLDEST.set(seconds)
        return seconds

    async def step(self) -> None:
        """Measures, for whoever does it again and again."""
        await self.measure()

    async def work_waits(self) -> bool:
        """Whether a consumer that has heard nothing for `SILENT_SECONDS` is to be begun anew.

        It is, if something was published within that time: it does not hear. The runs were found by looking, and none
        need be left. And it is, if a run has waited for longer than `LONG_SECONDS` although a place is free here.
        """
        try:
            if await self._waiting.was_told(SILENT_SECONDS - ON_ITS_WAY_SECONDS, ON_ITS_WAY_SECONDS):
                return True
        except ServiceError as error:
            _log.info("not known what was told", reason=error.reason)
            return False
        return self._has_place() and (await self.measure() or 0.0) > LONG_SECONDS
