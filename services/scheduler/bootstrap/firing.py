"""Composes what makes the fires of schedules."""

from __future__ import annotations

from functools import partial

import structlog

from services.kernel.clock import Clock
from services.kernel.db import Database
from services.kernel.errors import ServiceError
from services.kernel.ids import Uuid7Source
from services.kernel.supervision import supervise
from services.scheduler.bootstrap.background import Background
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.store.notes import CHANNEL, SCHEDULES_CHANGED
from services.scheduler.store.system_queries import FireQueries
from services.scheduler.usecases.firing import Backfiller, SchedulePrompts, Ticker

_log = structlog.get_logger(__name__)
_DEAF_SECONDS = 1.0
"""Before listening again where the database was lost."""


class Firing:
    """The tick, the prompts of schedules, and what wakes both."""

    def __init__(self, database: Database, renderer: TemplateProcesses, clock: Clock) -> None:
        """Args: database: the scheduler schema; renderer: renders prompts; clock: for waiting."""
        queries = FireQueries(database)
        self._database = database
        self._clock = clock
        self._ticker = Ticker(queries, Uuid7Source(), clock)
        self._backfiller = Backfiller(queries, Uuid7Source(), clock)
        self._prompts = SchedulePrompts(queries, renderer, clock, self.wake_fires)
        database.on_commit(SCHEDULES_CHANGED, self.wake)

    def wake(self) -> None:
        """Says that schedules have changed."""
        self._prompts.wake()
        self.wake_fires()

    def wake_fires(self) -> None:
        """Says that prompts were rendered."""
        self._ticker.wake()
        self._backfiller.wake()

    def begin(self, background: Background) -> None:
        """Fires from now on, as part of what a process does; the database is there."""
        for name, work in (
            ("tick", self._ticker.run),
            ("backfills", self._backfiller.run),
            ("prompts", self._prompts.run),
            ("schedule-changes", self._listen),
        ):
            background.begin(name, supervise(name, work, self._clock))

    async def _listen(self) -> None:
        listen = partial(self._database.listen, CHANNEL, self.wake)
        while True:
            try:
                await listen()
            except ServiceError as error:
                _log.info("changes of schedules are not heard", reason=error.reason)
            await self._clock.sleep(_DEAF_SECONDS)
