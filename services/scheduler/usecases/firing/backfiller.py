"""Makes the fires of backfills, on every replica, beside the tick: however much there is to fill, fires are not late.

The same locks and the same steps as the ticker's (see `ticker`); a backfill's row is locked behind its schedule's.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.ids import IdSource
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.backfills import BackfillState
from services.scheduler.domain.firing import FirePlan, OpenRun, look_at_backfill
from services.scheduler.domain.overlap import ENDING_POLICIES
from services.scheduler.usecases.firing.due_loop import Aside, DueLoop
from services.scheduler.usecases.firing.ports import BackfillFired, DueBackfill, Fires
from services.scheduler.usecases.firing.ticker import BUSY, FIRES, content_of

_log = structlog.get_logger(__name__)
FIRES_AT_ONCE: Final = 20
"""In one transaction, which holds the schedule: its own fires wait for no more than these."""


class Backfiller:
    """Fills, for ever."""

    def __init__(self, fires: Fires, ids: IdSource, clock: Clock) -> None:
        """Args: fires: the schedules; ids: names runs; clock: for waiting."""
        self._fires = fires
        self._ids = ids
        self._aside = Aside(clock)
        self._loop = DueLoop("backfills", self.fill, fires.seconds_to_backfill, self._aside, clock)
        self.wake = self._loop.wake
        self.run = self._loop.run

    async def fill(self) -> bool:
        """Makes fires of one backfill, as many as one transaction takes; returns whether there was one to look at.

        One whose schedule has a run that is to give way and is held by a process that is frozen is set aside.

        Raises:
            ServiceError: UNAVAILABLE: the database is away. Nothing was made.
        """
        taken: list[UUID] = []
        try:
            fired = await self._fill(taken)
        except ServiceError as error:
            if error.reason != BUSY or not taken:
                raise
            _log.warning("backfill set aside: a run that gives way is held", backfill_id=str(taken[0]))
            self._aside.put(taken[0])
            return True
        if fired is None:
            return False
        for run in fired.plan.runs:
            FIRES.labels(run.state.value).inc()
        return True

    async def _fill(self, taken: list[UUID]) -> BackfillFired | None:
        async with self._fires.begin() as transaction:
            due = await transaction.take_backfill(self._aside.ids())
            if due is None:
                return None
            taken.append(due.backfill.id)
            ids = [due.of.schedule.id]
            ending = ids if due.backfill.overlap_policy in ENDING_POLICIES else []
            runs = await transaction.open_runs(ids, ending)
            fired = self._look(due, runs.get(due.of.schedule.id, []))
            await transaction.record_backfill(fired)
        return fired

    def _look(self, due: DueBackfill, open_runs: list[OpenRun]) -> BackfillFired:
        of, backfill = due.of, due.backfill
        try:
            content = content_of(of)
            look = look_at_backfill(
                of.schedule,
                backfill,
                open_runs,
                now=of.now,
                renders=of.fault is None,
                new_id=self._ids.new_id,
                limit=FIRES_AT_ONCE,
            )
        except Exception as error:
            BACKGROUND_FAILURES.labels("backfill").inc()
            _log.error("backfill cancelled: its schedule cannot be read", id=str(backfill.id), exc_info=error)
            return BackfillFired(
                due, None, FirePlan(), backfill.handled_until, BackfillState.CANCELLED, waits=False
            )
        state = BackfillState.COMPLETED if look.done else BackfillState.RUNNING
        return BackfillFired(due, content, look.plan, look.handled_until, state, look.waits)
