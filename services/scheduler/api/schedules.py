"""`SchedulerService`: schedules."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.context import current_caller
from services.scheduler.api import mapping, schedule_mapping
from services.scheduler.api.masks import changes
from services.scheduler.api.pages import page
from services.scheduler.domain.schedules import DEFAULT_CATCH_UP_WINDOW, ScheduleContent
from services.scheduler.usecases.ports import ScheduleFilter
from services.scheduler.usecases.schedules import Schedules, UpdateSchedule

_PREVIEWED = 10


class ScheduleMethods:
    """The methods about schedules."""

    _schedules: Schedules

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Any) -> schedule_pb2.Schedule:
        """Creates a schedule."""
        content = ScheduleContent(
            name=request.name,
            timing=schedule_mapping.timing(request.spec),
            variables=schedule_mapping.value_of(request, "variables"),
            overlap_policy=schedule_mapping.value_of(request, "overlap_policy"),
            catch_up_window=schedule_mapping.value_of(request, "catch_up_window") or DEFAULT_CATCH_UP_WINDOW,
            pause_on_failure=request.pause_on_failure,
            remaining_runs=schedule_mapping.value_of(request, "remaining_runs"),
        )
        created = await self._schedules.create(
            current_caller(), UUID(request.task_id), content, request.request_id
        )
        return schedule_mapping.schedule(created)

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> schedule_pb2.Schedule:
        """Returns a schedule."""
        found = await self._schedules.get(current_caller(), UUID(request.schedule_id))
        return schedule_mapping.schedule(found)

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        """Lists the caller's schedules."""
        caller = current_caller()
        wanted = ScheduleFilter(
            user_id=caller.user_id,
            task_id=UUID(request.task_id) if request.task_id else None,
            states=tuple(schedule_pb2.Schedule.State.Name(state) for state in request.states),
        )
        schedules, token = await page(
            caller,
            ("ListSchedules", wanted),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._schedules.list_page(caller, wanted, before, limit),
            lambda row: row.id,
            schedule_mapping.schedule,
        )
        return pb.ListSchedulesResponse(schedules=schedules, next_page_token=token)

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Any) -> schedule_pb2.Schedule:
        """Changes a schedule."""
        values = changes(request, schedule_mapping.value_of, {"spec", "catch_up_window"})
        if "spec" in values:
            values["timing"] = values.pop("spec")
        change = UpdateSchedule(UUID(request.schedule_id), values, request.etag, request.request_id)
        return schedule_mapping.schedule(await self._schedules.update(current_caller(), change))

    async def DeleteSchedule(
        self, request: pb.DeleteScheduleRequest, context: Any
    ) -> pb.DeleteScheduleResponse:
        """Deletes a schedule."""
        await self._schedules.delete(
            current_caller(), UUID(request.schedule_id), request.etag, request.request_id
        )
        return pb.DeleteScheduleResponse()

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> schedule_pb2.Schedule:
        """Keeps a schedule from firing."""
        paused = await self._schedules.pause(
            current_caller(), UUID(request.schedule_id), request.note, request.request_id
        )
        return schedule_mapping.schedule(paused)

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Any) -> schedule_pb2.Schedule:
        """Lets a schedule fire again."""
        resumed = await self._schedules.resume(
            current_caller(), UUID(request.schedule_id), request.note, request.request_id
        )
        return schedule_mapping.schedule(resumed)

    async def PreviewSchedule(
        self, request: pb.PreviewScheduleRequest, context: Any
    ) -> pb.PreviewScheduleResponse:
        """Tells when a schedule fires next."""
        fires = await self._schedules.preview(
            current_caller(),
            schedule_mapping.previewed(request),
            request.count or _PREVIEWED,
            mapping.optional_time(request, "after", "after"),
        )
        return pb.PreviewScheduleResponse(fires=map(schedule_mapping.fire, fires))
