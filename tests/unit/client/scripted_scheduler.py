"""The scripted server's tasks, schedules and runs, changed by their masks; runs end as the test says."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc

from aiagent.scheduler.v1 import run_pb2, schedule_pb2, scheduler_service_pb2_grpc, task_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb

from .scripted_session import Fault

FINAL = {
    run_pb2.TaskRun.SUCCEEDED,
    run_pb2.TaskRun.FAILED,
    run_pb2.TaskRun.CANCELLED,
    run_pb2.TaskRun.SKIPPED,
}


class ScriptedScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """The scheduler's methods; `_enter` is the server's."""

    def __init__(self) -> None:
        self.kept: dict[str, task_pb2.Task] = {}
        self.schedules: dict[str, schedule_pb2.Schedule] = {}
        self.runs: dict[str, run_pb2.TaskRun] = {}
        self.run_ends: run_pb2.TaskRun | None = None
        """What a run has come to when it is read for the second time."""
        self.run_changes: list[run_pb2.TaskRun] = []
        """What watchers see of any run, one change after another; it stays open where the last is not its end."""
        self.backfills: dict[str, schedule_pb2.ScheduleBackfill] = {}

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

    async def _schedule(self, schedule_id: str, context: Any) -> schedule_pb2.Schedule:
        if schedule_id not in self.schedules:
            fault = Fault(grpc.StatusCode.NOT_FOUND, "SCHEDULE_NOT_FOUND", "the schedule does not exist")
            await fault.abort(context)
        return self.schedules[schedule_id]

    async def CreateSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("CreateSchedule", request, context)
        names = [field.name for field, _ in request.ListFields() if field.name != "request_id"]
        schedule = schedule_pb2.Schedule(
            id=str(uuid4()), etag='"1"', state="ACTIVE", **{name: getattr(request, name) for name in names}
        )
        schedule.create_time.GetCurrentTime()
        schedule.next_fire_time.FromJsonString("2030-01-01T08:30:00Z")
        self.schedules[schedule.id] = schedule
        return schedule

    async def GetSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("GetSchedule", request, context)
        return await self._schedule(request.schedule_id, context)

    async def ListSchedules(self, request: Any, context: Any) -> Any:
        await self._enter("ListSchedules", request, context)
        found = [
            schedule
            for schedule in self.schedules.values()
            if request.task_id in ("", schedule.task_id)
            and (not request.states or schedule.state in request.states)
        ]
        return pb.ListSchedulesResponse(schedules=found[::-1])

    async def UpdateSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("UpdateSchedule", request, context)
        schedule = await self._schedule(request.schedule_id, context)
        for name in request.update_mask.paths:
            schedule.ClearField(name)
            if name != "remaining_runs" or request.HasField(name):
                schedule.MergeFrom(schedule_pb2.Schedule(**{name: getattr(request, name)}))
        return schedule

    async def DeleteSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("DeleteSchedule", request, context)
        del self.schedules[(await self._schedule(request.schedule_id, context)).id]
        return pb.DeleteScheduleResponse()

    async def PauseSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("PauseSchedule", request, context)
        schedule = await self._schedule(request.schedule_id, context)
        schedule.state, schedule.note = schedule_pb2.Schedule.PAUSED, request.note
        return schedule

    async def ResumeSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("ResumeSchedule", request, context)
        schedule = await self._schedule(request.schedule_id, context)
        schedule.state, schedule.note = schedule_pb2.Schedule.ACTIVE, request.note
        return schedule

    async def PreviewSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("PreviewSchedule", request, context)
        fire = schedule_pb2.ScheduleFire(local_time="2026-03-29T03:00:00+02:00")
        fire.fire_time.FromJsonString("2026-03-29T01:00:00Z")
        return pb.PreviewScheduleResponse(fires=[fire] * min(2, request.count))

    async def RunTask(self, request: Any, context: Any) -> Any:
        await self._enter("RunTask", request, context)
        await self._task(request.task_id, context)
        run = run_pb2.TaskRun(id=str(uuid4()), task_id=request.task_id, state=run_pb2.TaskRun.QUEUED)
        run.variables.CopyFrom(request.variables)
        run.create_time.GetCurrentTime()
        self.runs[run.id] = run
        return run

    async def GetTaskRun(self, request: Any, context: Any) -> Any:
        await self._enter("GetTaskRun", request, context)
        run = await self._run(request.task_run_id, context)
        answer = run_pb2.TaskRun()
        answer.CopyFrom(run)
        if self.run_ends is not None:
            run.MergeFrom(self.run_ends)
        return answer

    async def ListTaskRuns(self, request: Any, context: Any) -> Any:
        await self._enter("ListTaskRuns", request, context)
        found = [
            run
            for run in self.runs.values()
            if request.task_id in ("", run.task_id)
            and request.schedule_id in ("", run.schedule_id)
            and request.backfill_id in ("", run.backfill_id)
            and (not request.states or run.state in request.states)
        ]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 50)
        token = str(end) if end < len(found) else ""
        return pb.ListTaskRunsResponse(task_runs=found[::-1][begin:end], next_page_token=token)

    async def CancelTaskRun(self, request: Any, context: Any) -> Any:
        await self._enter("CancelTaskRun", request, context)
        run = await self._run(request.task_run_id, context)
        run.cancel_requested = True
        if run.state == run_pb2.TaskRun.QUEUED:
            run.state = run_pb2.TaskRun.CANCELLED
        return run

    async def RetryTaskRun(self, request: Any, context: Any) -> Any:
        await self._enter("RetryTaskRun", request, context)
        run = await self._run(request.task_run_id, context)
        again = run_pb2.TaskRun(
            id=str(uuid4()), task_id=run.task_id, state=run_pb2.TaskRun.QUEUED, retry_of=run.id
        )
        self.runs[again.id] = again
        return again

    async def WatchTaskRun(self, request: Any, context: Any) -> Any:
        fault = await self._enter("WatchTaskRun", request, context)
        run = await self._run(request.task_run_id, context)
        sent = 0
        for cursor, change in enumerate(self.run_changes, 1):
            if fault is not None and sent >= fault.after:
                break
            run.MergeFrom(change)
            if cursor > request.cursor:
                yield pb.WatchTaskRunResponse(task_run=run, cursor=cursor)
                sent += 1
        if fault is not None and fault.code is grpc.StatusCode.OK:
            return
        if fault is not None:
            await fault.abort(context)
        if run.state not in FINAL:
            yield pb.WatchTaskRunResponse(cursor=len(self.run_changes))
            await asyncio.Event().wait()

    async def BackfillSchedule(self, request: Any, context: Any) -> Any:
        await self._enter("BackfillSchedule", request, context)
        schedule = await self._schedule(request.schedule_id, context)
        made = schedule_pb2.ScheduleBackfill(
            id=str(uuid4()),
            schedule_id=schedule.id,
            start_time=request.start_time,
            end_time=request.end_time,
            overlap_policy=request.overlap_policy or schedule_pb2.Schedule.SKIP,
            state=schedule_pb2.ScheduleBackfill.RUNNING,
        )
        self.backfills[made.id] = made
        return made

    async def GetScheduleBackfill(self, request: Any, context: Any) -> Any:
        await self._enter("GetScheduleBackfill", request, context)
        return self.backfills[request.backfill_id]

    async def ListScheduleBackfills(self, request: Any, context: Any) -> Any:
        await self._enter("ListScheduleBackfills", request, context)
        found = [one for one in self.backfills.values() if one.schedule_id == request.schedule_id][::-1]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 50)
        token = str(end) if end < len(found) else ""
        return pb.ListScheduleBackfillsResponse(backfills=found[begin:end], next_page_token=token)

    async def CancelScheduleBackfill(self, request: Any, context: Any) -> Any:
        await self._enter("CancelScheduleBackfill", request, context)
        self.backfills[request.backfill_id].state = schedule_pb2.ScheduleBackfill.CANCELLED
        return self.backfills[request.backfill_id]

    async def _run(self, run_id: str, context: Any) -> run_pb2.TaskRun:
        if run_id not in self.runs:
            await Fault(grpc.StatusCode.NOT_FOUND, "TASK_RUN_NOT_FOUND", "the run does not exist").abort(
                context
            )
        return self.runs[run_id]
