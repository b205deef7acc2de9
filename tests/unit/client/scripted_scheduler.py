"""The scripted server's tasks: kept as they come, changed by their masks."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import scheduler_service_pb2_grpc, task_pb2

from .scripted_session import Fault


class ScriptedScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """The scheduler's methods; `_enter` is the server's."""

    def __init__(self) -> None:
        self.kept: dict[str, task_pb2.Task] = {}

    async def _enter(self, method: str, request: Any, context: Any) -> Any:
        raise AssertionError

    def new_task(self, **fields: Any) -> task_pb2.Task:
        """Keeps a task."""
        task = task_pb2.Task(id=str(uuid4()), etag='"1"', **fields)
        task.run_timeout.FromSeconds(task.run_timeout.seconds or 3600)
        task.retry_policy.maximum_attempts = task.retry_policy.maximum_attempts or 3
        task.create_time.GetCurrentTime()
        task.update_time.GetCurrentTime()
        self.kept[task.id] = task
        return task

    async def _task(self, task_id: str, context: Any) -> task_pb2.Task:
        if task_id not in self.kept:
            await Fault(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND", "the task does not exist").abort(context)
        return self.kept[task_id]

    async def CreateTask(self, request: Any, context: Any) -> Any:
        await self._enter("CreateTask", request, context)
        names = [field.name for field, _ in request.ListFields() if field.name != "request_id"]
        return self.new_task(**{name: getattr(request, name) for name in names})

    async def GetTask(self, request: Any, context: Any) -> Any:
        await self._enter("GetTask", request, context)
        return await self._task(request.task_id, context)

    async def ListTasks(self, request: Any, context: Any) -> Any:
        await self._enter("ListTasks", request, context)
        found = [task for task in self.kept.values() if request.name_contains.lower() in task.name.lower()]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 50)
        token = str(end) if end < len(found) else ""
        return pb.ListTasksResponse(tasks=found[::-1][begin:end], next_page_token=token)

    async def UpdateTask(self, request: Any, context: Any) -> Any:
        await self._enter("UpdateTask", request, context)
        task = await self._task(request.task_id, context)
        for name in request.update_mask.paths:
            task.ClearField(name)
            task.MergeFrom(task_pb2.Task(**{name: getattr(request, name)}))
        return task

    async def DeleteTask(self, request: Any, context: Any) -> Any:
        await self._enter("DeleteTask", request, context)
        del self.kept[(await self._task(request.task_id, context)).id]
        return pb.DeleteTaskResponse()
