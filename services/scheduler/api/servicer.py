"""`SchedulerService`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import run_pb2, schedule_pb2, task_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer
from services.kernel.context import current_caller
from services.scheduler.api import mapping, run_mapping, schedule_mapping
from services.scheduler.api.pages import page
from services.scheduler.domain.entities import DEFAULT_RUN_TIMEOUT, TaskContent
from services.scheduler.domain.errors import invalid_request
from services.scheduler.domain.schedules import DEFAULT_CATCH_UP_WINDOW, ScheduleContent
from services.scheduler.usecases.ports import RunFilter, ScheduleFilter, TaskFilter
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules, UpdateSchedule
from services.scheduler.usecases.tasks import Tasks, UpdateTask

_PREVIEWED = 10


def _changes(request: Any, read: Callable[[Any, str], Any], never_empty: Collection[str]) -> dict[str, Any]:
    """Reads the fields that a mask names."""
    values: dict[str, Any] = {}
    for field in request.update_mask.paths:
        if "." in field:
            raise invalid_request("update_mask", f"{field}: names a part; fields are changed as a whole")
        values[field] = read(request, field)
        if field in never_empty and not values[field]:
            raise invalid_request(field, "is named by update_mask and missing")
    return values


class SchedulerServicer(SchedulerServiceServicer):
    """The methods of `aiagent.scheduler.v1.SchedulerService`."""

    def __init__(self, tasks: Tasks, schedules: Schedules, runs: Runs) -> None:
        """Args: the use cases."""
        self._tasks = tasks
        self._schedules = schedules
        self._runs = runs

    async def CreateTask(self, request: pb.CreateTaskRequest, context: Any) -> task_pb2.Task:
        """Creates a task."""
        values = {field.name: mapping.value_of(request, field.name) for field in fields(TaskContent)}
        values["run_timeout"] = values["run_timeout"] or DEFAULT_RUN_TIMEOUT
        created = await self._tasks.create(current_caller(), TaskContent(**values), request.request_id)
        return mapping.task(created)

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> task_pb2.Task:
        """Returns a task."""
        return mapping.task(await self._tasks.get(current_caller(), UUID(request.task_id)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        """Lists the caller's tasks."""
        caller = current_caller()
        wanted = TaskFilter(user_id=caller.user_id, name_contains=request.name_contains)
        tasks, token = await page(
            caller,
            ("ListTasks", wanted),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._tasks.list_page(caller, wanted, before, limit),
            lambda row: row.id,
            mapping.task,
        )
        return pb.ListTasksResponse(tasks=tasks, next_page_token=token)

    async def UpdateTask(self, request: pb.UpdateTaskRequest, context: Any) -> task_pb2.Task:
        """Changes a task."""
        values = _changes(request, mapping.value_of, {"name", "prompt_template", "run_timeout"})
        change = UpdateTask(UUID(request.task_id), values, request.etag, request.request_id)
        return mapping.task(await self._tasks.update(current_caller(), change))

    async def DeleteTask(self, request: pb.DeleteTaskRequest, context: Any) -> pb.DeleteTaskResponse:
        """Deletes a task."""
        await self._tasks.delete(current_caller(), UUID(request.task_id), request.etag, request.request_id)
        return pb.DeleteTaskResponse()

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
        values = _changes(request, schedule_mapping.value_of, {"spec", "catch_up_window"})
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

    async def RunTask(self, request: pb.RunTaskRequest, context: Any) -> run_pb2.TaskRun:
        """Runs a task now."""
        made = await self._runs.run(
            current_caller(),
            UUID(request.task_id),
            mapping.as_json(request.variables, "variables"),
            request.request_id,
        )
        return run_mapping.run(made.run, made.attempts)

    async def GetTaskRun(self, request: pb.GetTaskRunRequest, context: Any) -> run_pb2.TaskRun:
        """Returns a run."""
        found = await self._runs.get(current_caller(), UUID(request.task_run_id))
        return run_mapping.run(found.run, found.attempts)

    async def ListTaskRuns(self, request: pb.ListTaskRunsRequest, context: Any) -> pb.ListTaskRunsResponse:
        """Lists the caller's runs."""
        caller = current_caller()
        wanted = RunFilter(
            user_id=caller.user_id,
            task_id=UUID(request.task_id) if request.task_id else None,
            states=tuple(run_pb2.TaskRun.State.Name(state) for state in request.states),
        )
        runs, token = await page(
            caller,
            ("ListTaskRuns", wanted),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._runs.list_page(caller, wanted, before, limit),
            lambda row: row.id,
            run_mapping.run,
        )
        return pb.ListTaskRunsResponse(task_runs=runs, next_page_token=token)

    async def CancelTaskRun(self, request: pb.CancelTaskRunRequest, context: Any) -> run_pb2.TaskRun:
        """Asks for the end of a run."""
        found = await self._runs.cancel(current_caller(), UUID(request.task_run_id), request.request_id)
        return run_mapping.run(found.run, found.attempts)
