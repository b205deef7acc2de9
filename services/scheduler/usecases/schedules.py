"""Schedules: create, read, change, pause, resume, preview, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.scheduler.domain.entities import Task
from services.scheduler.domain.errors import etag_mismatch, invalid_request, too_many_schedules
from services.scheduler.domain.fires import RunLimit
from services.scheduler.domain.schedules import (
    Schedule,
    ScheduleContent,
    ScheduleState,
    ShownFire,
    Standing,
    Timing,
    following,
    standing_of,
)
from services.scheduler.domain.templates import Renderer
from services.scheduler.usecases.access import canonical, require_writer
from services.scheduler.usecases.ports import (
    NewSchedule,
    ScheduleFilter,
    SchedulerStore,
    SchedulerTransaction,
)
from services.scheduler.usecases.prompts import Rendered, Unrendered, render

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9998, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class UpdateSchedule:
    """What to change of a schedule: new values by their names in `ScheduleContent`."""

    schedule_id: UUID
    values: Mapping[str, Any]
    etag: str
    request_id: str


class Schedules:
    """The use cases."""

    def __init__(
        self, store: SchedulerStore, ids: IdSource, renderer: Renderer, *, most_of_user: int = 0
    ) -> None:
        """Composes the use cases.

        Args:
            store: The database.
            ids: Names schedules.
            renderer: Renders the prompt of their runs.
            most_of_user: How many a user may have; 0 for no limit.
        """
        self._most_of_user = most_of_user
        self._store = store
        self._ids = ids
        self._renderer = renderer

    async def create(
        self, caller: Caller, task_id: UUID, content: ScheduleContent, request_id: str
    ) -> Schedule:
        """Creates a schedule of a task, for the task's owner.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with TASK_NOT_FOUND; INVALID_ARGUMENT with
                INVALID_REQUEST, also for a prompt that cannot be rendered with the variables (see `prompts.render`), or
                REQUEST_ID_REUSED; UNAVAILABLE with RENDERER_UNAVAILABLE; RESOURCE_EXHAUSTED with TOO_MANY_SCHEDULES.
        """
        require_writer(caller)
        schedule_id = self._ids.new_id()

        async def create(rendered: Rendered | None) -> Schedule:
            async with self._store.begin(caller) as transaction:

                async def run() -> bytes:
                    # Locked, so that it is neither changed nor deleted meanwhile.
                    task = await transaction.get_task(task_id, lock=True)
                    prompt = _prompt_of(task, rendered)
                    most = self._most_of_user
                    if most and await transaction.count_schedules(task.user_id) >= most:
                        raise too_many_schedules(most)
                    now = await transaction.now()
                    content.timing.spec(now=now)
                    standing = standing_of(schedule_id, content, now)
                    await transaction.insert_schedule(
                        NewSchedule(schedule_id, task.id, task.user_id, content, standing, prompt)
                    )
                    return schedule_id.bytes

                made = await transaction.once("CreateSchedule", request_id, canonical(task_id, content), run)
                return await transaction.get_schedule(UUID(bytes=made))

        return await self._rendering(create, content.variables)

    async def get(self, caller: Caller, schedule_id: UUID) -> Schedule:
        """Returns a schedule.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.get_schedule(schedule_id)

    async def list_page(
        self, caller: Caller, wanted: ScheduleFilter, before: UUID | None, limit: int
    ) -> list[Schedule]:
        """Returns at most `limit` of the caller's schedules, the newest first, that are older than `before`."""
        async with self._store.begin(caller) as transaction:
            return await transaction.list_schedules(wanted, before, limit)

    async def update(self, caller: Caller, change: UpdateSchedule) -> Schedule:
        """Changes a schedule. With another timing its fires are handled until now: what the old one missed is not made.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND; ABORTED with ETAG_MISMATCH; INVALID_ARGUMENT with
                INVALID_REQUEST, also for a prompt that cannot be rendered with new variables; UNAVAILABLE with
                RENDERER_UNAVAILABLE.
        """
        values, changed = change.values, change.values.keys()

        async def move(
            transaction: SchedulerTransaction, schedule: Schedule, rendered: Rendered | None
        ) -> None:
            _check_etag(schedule, change.etag)
            content, standing = replace(schedule.content, **values), schedule.standing
            prompt = None
            if "variables" in changed:
                prompt = _prompt_of(await transaction.get_task(schedule.task_id), rendered)
            if "timing" in changed:
                content.timing.spec(now=await transaction.now())
            if changed & {"timing", "remaining_runs"}:
                handled_until = standing.handled_until
                if "timing" in changed or standing.state is not ScheduleState.ACTIVE:
                    handled_until = await transaction.now()
                standing = (
                    replace(standing, handled_until=handled_until)
                    if standing.state is ScheduleState.PAUSED
                    else standing_of(schedule.id, content, handled_until)
                )
            await transaction.update_schedule(schedule.id, content, standing, schedule.note, prompt)

        async def update(rendered: Rendered | None) -> Schedule:
            return await self._change(
                caller,
                "UpdateSchedule",
                change.schedule_id,
                change.request_id,
                canonical(change.schedule_id, values, change.etag),
                partial(move, rendered=rendered),
            )

        return await self._rendering(update, values.get("variables", {}))

    async def pause(self, caller: Caller, schedule_id: UUID, note: str, request_id: str) -> Schedule:
        """Keeps a schedule from firing.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND.
        """

        async def move(transaction: SchedulerTransaction, schedule: Schedule) -> None:
            standing = Standing(ScheduleState.PAUSED, schedule.standing.handled_until)
            await transaction.update_schedule(schedule.id, schedule.content, standing, note)

        body = canonical(schedule_id, note)
        return await self._change(caller, "PauseSchedule", schedule_id, request_id, body, move)

    async def resume(self, caller: Caller, schedule_id: UUID, note: str, request_id: str) -> Schedule:
        """Lets a schedule fire again, from now on.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND.
        """

        async def move(transaction: SchedulerTransaction, schedule: Schedule) -> None:
            standing = schedule.standing
            if standing.state is ScheduleState.PAUSED:
                standing = standing_of(schedule.id, schedule.content, await transaction.now())
            await transaction.update_schedule(schedule.id, schedule.content, standing, note)

        body = canonical(schedule_id, note)
        return await self._change(caller, "ResumeSchedule", schedule_id, request_id, body, move)

    async def delete(self, caller: Caller, schedule_id: UUID, etag: str, request_id: str) -> None:
        """Deletes a schedule.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND; ABORTED with ETAG_MISMATCH.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                _check_etag(await transaction.get_schedule(schedule_id, lock=True), etag)
                await transaction.delete_schedule(schedule_id)
                return b""

            await transaction.once("DeleteSchedule", request_id, canonical(schedule_id, etag), run)

    async def preview(
        self, caller: Caller, of: UUID | Timing, count: int, after: datetime | None
    ) -> list[ShownFire]:
        """Tells when a schedule fires next, or would if it were kept, or resumed.

        Args:
            caller: Who asks.
            of: A schedule, or when one would fire.
            count: How many fires at most.
            after: Fires after this time; None for now.

        Raises:
            ServiceError: NOT_FOUND with SCHEDULE_NOT_FOUND; INVALID_ARGUMENT with INVALID_REQUEST.
        """
        if after is not None and not _EARLIEST <= after < _LATEST:
            raise invalid_request("after", "must be an instant from 1970 to 9997")
        async with self._store.begin(caller) as transaction:
            schedule = await transaction.get_schedule(of) if isinstance(of, UUID) else None
            after = after or await transaction.now()
        if schedule is not None:
            of, count = schedule.content.timing, RunLimit(schedule.content.remaining_runs).cut(count)
        if not isinstance(of, Timing):
            raise AssertionError("a schedule or a timing")
        fires: list[ShownFire] = []
        for fire in following(of, after, schedule_id=schedule.id if schedule is not None else None):
            if len(fires) == count:
                break
            fires.append(fire)
            # A rare one takes milliseconds to be found: nobody else has to wait for all of them.
            await asyncio.sleep(0)
        return fires

    async def _rendering(
        self, make: Callable[[Rendered | None], Awaitable[Schedule]], variables: Mapping[str, Any]
    ) -> Schedule:
        """Tries a change with the prompt that it needs: it is rendered between two tries, of what was found under
        locks."""
        rendered = None
        while True:
            try:
                return await make(rendered)
            except Unrendered as unrendered:
                rendered = await render(self._renderer, unrendered.task, variables)

    async def _change(
        self,
        caller: Caller,
        method: str,
        schedule_id: UUID,
        request_id: str,
        body: bytes,
        move: Callable[[SchedulerTransaction, Schedule], Awaitable[None]],
    ) -> Schedule:
        """Changes a schedule under its lock, once for each request id."""
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await move(transaction, await transaction.get_schedule(schedule_id, lock=True))
                return b""

            await transaction.once(method, request_id, body, run)
            return await transaction.get_schedule(schedule_id)


def _prompt_of(task: Task, rendered: Rendered | None) -> str:
    if rendered is None or (rendered.task_id, rendered.version) != (task.id, task.version):
        raise Unrendered(task)
    return rendered.content.prompt


def _check_etag(schedule: Schedule, etag: str) -> None:
    if etag and etag != schedule.etag:
        raise etag_mismatch("schedule")
