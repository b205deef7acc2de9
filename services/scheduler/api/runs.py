"""`SchedulerService`: runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.context import current_caller
from services.kernel.grpc import accept_stream, end_if_unread
from services.scheduler.api import mapping, run_mapping
from services.scheduler.api.pages import page
from services.scheduler.domain.errors import draining
from services.scheduler.usecases.ports import RunFilter
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.watching import Watching

_UNREAD_SECONDS = 60.0
"""How long a response may wait for its watcher: a connection that is dead is to leave its place."""


class RunMethods:
    """The methods about runs."""

    _runs: Runs
    _watching: Watching

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
            schedule_id=UUID(request.schedule_id) if request.schedule_id else None,
            backfill_id=UUID(request.backfill_id) if request.backfill_id else None,
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

    async def RetryTaskRun(self, request: pb.RetryTaskRunRequest, context: Any) -> run_pb2.TaskRun:
        """Does a run again that ended without success."""
        made = await self._runs.retry(current_caller(), UUID(request.task_run_id), request.request_id)
        return run_mapping.run(made.run, made.attempts)

    async def WatchTaskRun(
        self, request: pb.WatchTaskRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchTaskRunResponse]:
        """Streams a run."""
        end_if_unread(_UNREAD_SECONDS, draining)
        watch = self._watching.watch(current_caller(), UUID(request.task_run_id), request.cursor)
        async with watch as changes:
            await accept_stream(context)
            async for change in changes:
                yield run_mapping.watched(change)
                # Whoever waits for the next one holds no run.
                del change
