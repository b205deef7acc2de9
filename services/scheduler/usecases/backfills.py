"""Backfills of schedules: ask for one, read, cancel. A tick makes their fires."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.kernel.errors import FieldViolation
from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.scheduler.domain.backfills import MAX_AT_WORK, MAX_FIRES, Backfill
from services.scheduler.domain.errors import invalid_request, too_many_backfills
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import Timing
from services.scheduler.domain.violations import refuse
from services.scheduler.usecases.access import canonical, require_writer
from services.scheduler.usecases.ports import NewBackfill, SchedulerStore

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class AskBackfill:
    """What is to be filled; without a policy the schedule's own holds."""

    schedule_id: UUID
    start_time: datetime
    end_time: datetime
    overlap_policy: OverlapPolicy | None


class _Uncounted(Exception):
    """The schedule does not fire by the timing whose fires were counted; nothing was changed."""

    def __init__(self, timing: Timing) -> None:
        super().__init__()
        self.timing = timing


class Backfills:
    """The use cases."""

    def __init__(self, store: SchedulerStore, ids: IdSource) -> None:
        """Args: store: the database; ids: names backfills."""
        self._store = store
        self._ids = ids

    async def create(self, caller: Caller, asked: AskBackfill, request_id: str) -> Backfill:
        """Records that the fires of a span are to be made, for the schedule's owner.

        The row is all that there is of it: once it is committed a tick finds it, whatever dies meanwhile.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with SCHEDULE_NOT_FOUND; INVALID_ARGUMENT
                with REQUEST_ID_REUSED, or with INVALID_REQUEST for a span that is none, lies in the future, or has no
                fire (NEVER_FIRES) or more than `MAX_FIRES` (TOO_MANY); RESOURCE_EXHAUSTED with TOO_MANY_BACKFILLS.
        """
        require_writer(caller)
        counted = None
        while True:
            try:
                return await self._make(caller, asked, request_id, counted)
            except _Uncounted as uncounted:
                # Outside of the transaction: it may take a while, and ticks would wait for the schedule.
                await _check_fires(uncounted.timing, asked)
                counted = uncounted.timing

    async def _make(
        self, caller: Caller, asked: AskBackfill, request_id: str, counted: Timing | None
    ) -> Backfill:
        new_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                # Locked, so that it is neither changed nor deleted meanwhile.
                schedule = await transaction.get_schedule(asked.schedule_id, lock=True)
                _check_span(asked, await transaction.now())
                if counted != schedule.content.timing:
                    raise _Uncounted(schedule.content.timing)
                if await transaction.count_backfills(schedule.user_id) >= MAX_AT_WORK:
                    raise too_many_backfills(MAX_AT_WORK)
                await transaction.insert_backfill(
                    NewBackfill(
                        new_id,
                        schedule.id,
                        schedule.user_id,
                        asked.start_time,
                        asked.end_time,
                        asked.overlap_policy or schedule.content.overlap_policy,
                    )
                )
                return new_id.bytes

            made = await transaction.once("BackfillSchedule", request_id, canonical(asked), run)
            return await transaction.get_backfill(UUID(bytes=made))

    async def get(self, caller: Caller, backfill_id: UUID) -> Backfill:
        """Returns a backfill.

        Raises:
            ServiceError: NOT_FOUND with BACKFILL_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.get_backfill(backfill_id)

    async def list_page(
        self, caller: Caller, schedule_id: UUID, before: UUID | None, limit: int
    ) -> list[Backfill]:
        """Returns at most `limit` backfills of a schedule, the newest first, that are older than `before`.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_schedule(schedule_id)
            return await transaction.list_backfills(schedule_id, before, limit)

    async def cancel(self, caller: Caller, backfill_id: UUID, request_id: str) -> Backfill:
        """Keeps a backfill from making further fires; one that is over stays as it is.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with BACKFILL_NOT_FOUND.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def cancel() -> bytes:
                # A tick that makes its fires at this moment ends first: afterwards none is made.
                await transaction.get_backfill(backfill_id, lock=True)
                await transaction.cancel_backfill(backfill_id)
                return b""

            await transaction.once("CancelScheduleBackfill", request_id, canonical(backfill_id), cancel)
            return await transaction.get_backfill(backfill_id)


def _check_span(asked: AskBackfill, now: datetime) -> None:
    if asked.start_time < _EARLIEST:
        raise invalid_request("start_time", "must not be before 1970")
    if asked.end_time < asked.start_time:
        raise invalid_request("end_time", "must not be before start_time")
    if asked.end_time > now:
        raise invalid_request("end_time", "must not be in the future")


async def _check_fires(timing: Timing, asked: AskBackfill) -> None:
    """Counts the fires of the span, up to one too many."""
    number = 0
    for fire in timing.spec().following(asked.start_time - _TICK):
        if fire > asked.end_time:
            break
        number += 1
        if number > MAX_FIRES:
            description = f"must leave the span at most {MAX_FIRES:,} fires"
            raise refuse([FieldViolation("end_time", description, "TOO_MANY")])
        # Thousands of steps, of which a rare one takes milliseconds: nobody else has to wait for all of them.
        await asyncio.sleep(0)
    if not number:
        raise refuse([FieldViolation("end_time", "must leave the span a fire", "NEVER_FIRES")])
