"""Makes the fires of backfills, on every replica, beside the tick: however much there is to fill, fires are not late.

The same locks and the same steps as the ticker's (see `ticker`); a backfill's row is locked behind its schedule's.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.ids import IdSource
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.backfills import BackfillState
from services.scheduler.domain.firing import OpenRun, look_at_backfill
from services.scheduler.domain.overlap import ENDING_POLICIES
from services.scheduler.usecases.firing.due_loop import Aside, DueLoop
from services.scheduler.usecases.firing.ports import (
    BackfillFired,
    DueBackfill,
    Fires,
    FireTransaction,
    Unreadable,
)
from services.scheduler.usecases.firing.ticker import FIRES, content_of

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

        Nothing is waited for: one of whose schedule somebody has locked a run that is to give way is set aside.

        Raises:
            ServiceError: UNAVAILABLE: the database is away. Nothing was made.
        """
        fired = None
        async with self._fires.begin() as transaction:
            due = await transaction.take_backfill(self._aside.ids())
            if due is None:
                return False
            if isinstance(due, Unreadable):
                await self._give_up(transaction, due.id, due.error)
                return True
            ids = [due.of.schedule.id]
            if due.backfill.overlap_policy in ENDING_POLICIES and await transaction.hold_runs(ids):
                _log.warning(
                    "backfill set aside: a run that gives way is locked", backfill_id=str(due.backfill.id)
                )
                self._aside.put(due.backfill.id)
                return True
            runs = await transaction.open_runs(ids)
            try:
                fired = self._look(due, runs.get(ids[0], []))
            except Exception as error:
                await self._give_up(transaction, due.backfill.id, error)
            else:
                await transaction.record_backfill(fired)
        for run in fired.plan.runs if fired else ():
            FIRES.labels(run.state.value).inc()
        return True

    async def _give_up(self, transaction: FireTransaction, backfill_id: UUID, error: Exception) -> None:
        BACKGROUND_FAILURES.labels("backfill").inc()
        _log.error(
            "backfill cancelled: its schedule cannot be read", backfill_id=str(backfill_id), exc_info=error
        )
        await transaction.give_up_backfill(backfill_id)

    def _look(self, due: DueBackfill, open_runs: list[OpenRun]) -> BackfillFired:
        of = due.of
        look = look_at_backfill(
            of.schedule,
            due.backfill,
            open_runs,
            now=of.now,
            renders=of.fault is None,
            new_id=self._ids.new_id,
            limit=FIRES_AT_ONCE,
        )
        state = BackfillState.COMPLETED if look.done else BackfillState.RUNNING
        return BackfillFired(due, content_of(of), look.plan, look.handled_until, state, look.waits)
