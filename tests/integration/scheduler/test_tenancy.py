"""Who may see and change what: every method, tried by those who may not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.identity import Role
from services.scheduler.store.tables import metadata
from tests.integration.session.serving import reason

from .serving import Client, Serving

pytestmark = pytest.mark.integration

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["SchedulerService"].methods]
# What makes something new, or lists all that is the caller's: it names nothing that is there.
NAMING_NOTHING = {"CreateTask", "ListTasks", "ListSchedules", "ListTaskRuns"}
DONE = schedule_pb2.ScheduleBackfill.COMPLETED
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
NAMES = ("task_id", "schedule_id", "backfill_id", "task_run_id")
READING = ("Get", "List", "Preview", "Watch")


async def requests(owner: Client) -> dict[str, Any]:
    """A request of every method about something of the owner's."""
    schedule = await owner.schedule()
    task = {"task_id": schedule.task_id}
    kept = {"schedule_id": schedule.id}
    run = {"task_run_id": (await owner.run(schedule.task_id)).id}
    # Over, so that it can be done again, and a watch of it ends.
    ended = {"task_run_id": (await owner.run(schedule.task_id)).id}
    await owner.CancelTaskRun(pb.CancelTaskRunRequest(**ended))
    span = {"start_time": YESTERDAY - timedelta(days=2), "end_time": YESTERDAY}
    backfill = await owner.BackfillSchedule(pb.BackfillScheduleRequest(**kept, **span))
    filled = {"backfill_id": backfill.id}
    async with asyncio.timeout(20):
        # The service's own tick makes its fires; from then on nothing changes by itself.
        while (await owner.GetScheduleBackfill(pb.GetScheduleBackfillRequest(**filled))).state != DONE:
            await asyncio.sleep(0.005)
    return {
        "CreateTask": pb.CreateTaskRequest(name="new", prompt_template="x"),
        "GetTask": pb.GetTaskRequest(**task),
        "ListTasks": pb.ListTasksRequest(),
        "UpdateTask": pb.UpdateTaskRequest(**task, name="taken", update_mask={"paths": ["name"]}),
        "DeleteTask": pb.DeleteTaskRequest(**task),
        "CreateSchedule": pb.CreateScheduleRequest(**task, spec={"interval": {"seconds": 60}}),
        "GetSchedule": pb.GetScheduleRequest(**kept),
        "ListSchedules": pb.ListSchedulesRequest(**task),
        "UpdateSchedule": pb.UpdateScheduleRequest(**kept, name="taken", update_mask={"paths": ["name"]}),
        "DeleteSchedule": pb.DeleteScheduleRequest(**kept),
        "PauseSchedule": pb.PauseScheduleRequest(**kept),
        "ResumeSchedule": pb.ResumeScheduleRequest(**kept),
        "PreviewSchedule": pb.PreviewScheduleRequest(**kept),
        "BackfillSchedule": pb.BackfillScheduleRequest(**kept, **span),
        "GetScheduleBackfill": pb.GetScheduleBackfillRequest(**filled),
        "ListScheduleBackfills": pb.ListScheduleBackfillsRequest(**kept),
        "CancelScheduleBackfill": pb.CancelScheduleBackfillRequest(**filled),
        "RunTask": pb.RunTaskRequest(**task),
        "GetTaskRun": pb.GetTaskRunRequest(**run),
        "ListTaskRuns": pb.ListTaskRunsRequest(**task),
        "WatchTaskRun": pb.WatchTaskRunRequest(**ended),
        "RetryTaskRun": pb.RetryTaskRunRequest(**ended),
        "CancelTaskRun": pb.CancelTaskRunRequest(**run),
    }


async def served(call: Any) -> None:
    """Lets a call or a stream end."""
    if hasattr(call, "__aiter__"):
        assert [response async for response in call]
    else:
        await call


async def everything(api: Serving) -> list[Any]:
    return [await api.rows(table) for table in metadata.sorted_tables]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in NAMING_NOTHING])
async def test_others_meet_what_is_not_there(api: Serving, method: str) -> None:
    owner = api.client()
    request = (await requests(owner))[method]
    before = await everything(api)
    nowhere = type(request)()
    nowhere.CopyFrom(request)
    setattr(nowhere, next(name for name in NAMES if name in request.DESCRIPTOR.fields_by_name), str(uuid4()))
    expected = await reason(getattr(owner, method)(nowhere))
    assert expected.startswith("NOT_FOUND ")
    for other in (api.client(), api.colleague(owner)):
        assert await reason(getattr(other, method)(request)) == expected
    assert await everything(api) == before


@pytest.mark.parametrize("method", METHODS)
async def test_viewers_read_only(api: Serving, method: str) -> None:
    owner = api.client()
    request = (await requests(owner))[method]
    before = await everything(api)
    call = getattr(api.demoted(owner), method)(request)
    if method.startswith(READING):
        await served(call)
    else:
        assert await reason(call) == "PERMISSION_DENIED ROLE_NOT_ALLOWED"
    assert await everything(api) == before


async def test_lists_hold_the_callers_own(api: Serving) -> None:
    owner = api.client()
    task = await owner.task()
    assert [found.id for found in (await owner.ListTasks(pb.ListTasksRequest())).tasks] == [task.id]
    schedule = await owner.schedule(task.id)
    listed = (await owner.ListSchedules(pb.ListSchedulesRequest(task_id=task.id))).schedules
    assert [found.id for found in listed] == [schedule.id]
    for other in (api.client(), api.colleague(owner), api.colleague(owner, Role.ADMIN)):
        assert not (await other.ListTasks(pb.ListTasksRequest())).tasks
        assert not (await other.ListSchedules(pb.ListSchedulesRequest(task_id=task.id))).schedules


@pytest.mark.parametrize("method", [method for method in METHODS if method not in NAMING_NOTHING])
async def test_administrators_of_the_organization_may(api: Serving, method: str) -> None:
    owner = api.client()
    request = (await requests(owner))[method]
    await served(getattr(api.colleague(owner, Role.ADMIN), method)(request))


async def test_what_an_administrator_adds_to_a_task_is_its_owners(api: Serving) -> None:
    owner = api.client()
    task = await owner.task()
    schedule = await api.colleague(owner, Role.ADMIN).schedule(task.id)
    assert schedule.user_id == task.user_id
    assert (await owner.GetSchedule(pb.GetScheduleRequest(schedule_id=schedule.id))) == schedule


async def test_nobody_without_a_token(api: Serving) -> None:
    anonymous = Client(api.channel, (), api.client().caller)
    for method, request in (await requests(api.client())).items():
        assert await reason(getattr(anonymous, method)(request)) == "UNAUTHENTICATED TOKEN_MISSING"
