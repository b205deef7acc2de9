"""`SchedulerService`: tasks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import task_pb2
from services.kernel.context import current_caller
from services.scheduler.api import mapping
from services.scheduler.api.masks import changes
from services.scheduler.api.pages import page
from services.scheduler.domain.entities import DEFAULT_RUN_TIMEOUT, TaskContent
from services.scheduler.usecases.ports import TaskFilter
from services.scheduler.usecases.tasks import Tasks, UpdateTask


class TaskMethods:
    """The methods about tasks."""

    _tasks: Tasks

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
        values = changes(request, mapping.value_of, {"name", "prompt_template", "run_timeout"})
        change = UpdateTask(UUID(request.task_id), values, request.etag, request.request_id)
        return mapping.task(await self._tasks.update(current_caller(), change))

    async def DeleteTask(self, request: pb.DeleteTaskRequest, context: Any) -> pb.DeleteTaskResponse:
        """Deletes a task."""
        await self._tasks.delete(current_caller(), UUID(request.task_id), request.etag, request.request_id)
        return pb.DeleteTaskResponse()
