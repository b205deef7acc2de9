"""The tick: makes the runs of schedules when they are due, on every replica, each fire once.

Who writes what, under which lock, and what is so when the process dies on the next line:

1. A look locks due schedules (`FOR UPDATE SKIP LOCKED`): other replicas pass over them. If it dies, the locks go with
   its connection, and the schedules are as due as before.
2. Under these locks it reads which of their runs are open, and decides (`domain.firing`). Whoever ends, cancels or
   promotes a run of a schedule locks the schedule first, so none of that changes meanwhile.
3. It inserts the runs, marks those that give way, moves the schedules on and writes the outbox, and commits all of it
   together. If it dies before, nothing of it is; after, the schedules are not due any more.
4. The commit wakes the worker of this process and the outbox's relay. If it dies before they have done anything, the
   runs are found by workers that look by themselves.

That a fire makes one run is held by the lock and the step forward in the same transaction; a unique index stands
behind. Due is what PostgreSQL's clock says. There is no period: a replica sleeps until the next schedule is due, or a
change of schedules is told (`NOTIFY`), or `LOOK_SECONDS`, should that have been lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter, Histogram

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.ids import IdSource
from services.kernel.supervision import BACKGROUND_FAILURES
from services.kernel.telemetry import registry
from services.scheduler.domain.firing import OpenRun, look_at_schedule
from services.scheduler.domain.overlap import ENDING_POLICIES
from services.scheduler.domain.runs import RunContent
from services.scheduler.domain.variables import read_values
from services.scheduler.usecases.firing.due_loop import LOOK_SECONDS, Aside, DueLoop
from services.scheduler.usecases.firing.ports import (
    DueSchedule,
    Fired,
    Fires,
    FireTransaction,
    Unreadable,
)

_log = structlog.get_logger(__name__)
SCHEDULES_AT_ONCE: Final = 50
FIRES = Counter(
    "aiagent_schedule_fires_total",
    "Fires that were made, by the first state of their run.",
    ("state",),
    registry=registry,
)
MISSED = Counter(
    "aiagent_schedule_fires_missed_total",
    "Fires that were later than their catch-up window.",
    registry=registry,
)
LATENESS = Histogram(
    "aiagent_schedule_lateness_seconds",
    "From the time at which a fire was due to the look that made it.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600),
    registry=registry,
)


class Ticker:
    """Fires, for ever."""

    def __init__(
        self, fires: Fires, ids: IdSource, clock: Clock, *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        """Args: fires: the schedules; ids: names runs; clock: for waiting; look_seconds: the longest sleep."""
        self._fires = fires
        self._ids = ids
        self._aside = Aside(clock)
        self._loop = DueLoop("schedules", self.tick, fires.seconds_to_fire, self._aside, clock, look_seconds)
        self.wake = self._loop.wake
        self.run = self._loop.run

    async def tick(self) -> bool:
        """Makes the fires that are due, as many as one transaction takes; returns whether there may be more.

        Nothing is waited for: where somebody has locked a run that is to give way, its schedule is set aside for a
        while.

        Raises:
            ServiceError: UNAVAILABLE: the database is away. Nothing was made.
        """
        fired: list[Fired] = []
        async with self._fires.begin() as transaction:
            taken = await transaction.take_due(SCHEDULES_AT_ONCE, self._aside.ids())
            for found in taken:
                if isinstance(found, Unreadable):
                    await transaction.pause(found.id, _why_paused(found.id, found.error))
            for due in await self._to_fire(transaction, taken):
                try:
                    fired.append(self._look(*due))
                except Exception as error:
                    # One that makes no sense must not keep the others from firing, nor be looked at for ever.
                    schedule_id = due[0].schedule.id
                    await transaction.pause(schedule_id, _why_paused(schedule_id, error))
                # Finding the next fire takes a millisecond: others are served in between.
                await asyncio.sleep(0)
            if fired:
                await transaction.record(fired)
        for one in fired:
            MISSED.inc(one.missed)
            for run in one.plan.runs:
                FIRES.labels(run.state.value).inc()
                LATENESS.observe((one.due.now - run.due_time).total_seconds())
        return bool(taken)

    async def _to_fire(
        self, transaction: FireTransaction, taken: Sequence[DueSchedule | Unreadable]
    ) -> list[tuple[DueSchedule, list[OpenRun]]]:
        """Reads what is open of the schedules that may fire now."""
        due = [found for found in taken if isinstance(found, DueSchedule)]
        if not due:
            return []
        ending = [
            found.schedule.id for found in due if found.schedule.content.overlap_policy in ENDING_POLICIES
        ]
        held = await transaction.hold_runs(ending) if ending else frozenset()
        for schedule_id in held:
            _log.warning("schedule set aside: a run that gives way is locked", schedule_id=str(schedule_id))
            self._aside.put(schedule_id)
        free = [found for found in due if found.schedule.id not in held]
        runs = await transaction.open_runs([found.schedule.id for found in free])
        return [(found, runs.get(found.schedule.id, [])) for found in free]

    def _look(self, due: DueSchedule, open_runs: list[OpenRun]) -> Fired:
        content = content_of(due)
        look = look_at_schedule(
            due.schedule, open_runs, now=due.now, renders=due.fault is None, new_id=self._ids.new_id
        )
        return Fired(due, content, look.plan, look.standing, look.remaining_runs, look.missed)


def _why_paused(schedule_id: UUID, error: Exception) -> str:
    expected = isinstance(error, ServiceError)
    why = str(error) if expected else "an internal error"
    if not expected:
        BACKGROUND_FAILURES.labels("schedule").inc()
    _log.error(
        "schedule paused: its next fire cannot be found",
        schedule_id=str(schedule_id),
        why=why,
        exc_info=None if expected else error,
    )
    return f"paused by the scheduler: its next fire cannot be found ({why})"


def content_of(due: DueSchedule) -> RunContent:
    """What the runs of a schedule do."""
    values = due.schedule.content.variables
    if due.fault is None:
        # With their defaults, as they went into the prompt.
        values = read_values(due.task.content.variables, values)
    return RunContent.of(due.task.content, values, due.prompt or "")
