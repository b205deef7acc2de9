"""Schedules: what is given comes back, nonsense is refused with its field, and where one stands follows from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.scheduler.store.tables import schedules
from tests.integration.session.serving import reason

from .serving import Client, Serving, field_of

pytestmark = pytest.mark.integration

STATES = schedule_pb2.Schedule.State
VARIABLES = [
    {"name": "repository", "required": True},
    {"name": "limit", "type": "INTEGER", "default_value": {"number_value": 20}},
]
EVERYTHING: dict[str, Any] = {
    "name": "weekdays",
    "spec": {
        "cron_expression": "30 9 * * mon-fri",
        "time_zone": "Europe/Berlin",
        "start_time": "2030-01-01T00:00:00Z",
        "end_time": "2031-01-01T00:00:00Z",
        "jitter": "60s",
        "anchor": "2029-01-01T00:00:00Z",
    },
    "variables": {"repository": "core", "limit": 5.0},
    "overlap_policy": "BUFFER_ONE",
    "catch_up_window": "3600s",
    "pause_on_failure": True,
    "remaining_runs": "7",
}
MINE = {"update_mask", "etag", "request_id", "schedule_id"}


def shown(schedule: schedule_pb2.Schedule) -> dict[str, Any]:
    found = json_format.MessageToDict(schedule, preserving_proto_field_name=True)
    return {name: value for name, value in found.items() if name in EVERYTHING}


def creation(task_id: str, **changes: Any) -> pb.CreateScheduleRequest:
    return json_format.ParseDict({"task_id": task_id, **EVERYTHING, **changes}, pb.CreateScheduleRequest())


def change(schedule: schedule_pb2.Schedule, *paths: str, **fields: Any) -> pb.UpdateScheduleRequest:
    made = json_format.ParseDict({"schedule_id": schedule.id, **fields}, pb.UpdateScheduleRequest())
    made.update_mask.paths.extend(paths or fields.keys() - MINE)
    return made


async def move(client: Client, schedule: schedule_pb2.Schedule, way: str, **fields: Any) -> Any:
    request = getattr(pb, f"{way}ScheduleRequest")(schedule_id=schedule.id, **fields)
    return await getattr(client, f"{way}Schedule")(request)


def state(schedule: schedule_pb2.Schedule) -> str:
    return STATES.Name(schedule.state)


async def read(client: Client, schedule: schedule_pb2.Schedule) -> schedule_pb2.Schedule:
    return await client.GetSchedule(pb.GetScheduleRequest(schedule_id=schedule.id))


async def preview(client: Client, **fields: Any) -> list[Any]:
    request = json_format.ParseDict(fields, pb.PreviewScheduleRequest())
    return list((await client.PreviewSchedule(request)).fires)


async def test_what_is_given_comes_back(api: Serving) -> None:
    client = api.client()
    task = await client.task(variables=VARIABLES)
    created = await client.CreateSchedule(creation(task.id))
    assert shown(created) == EVERYTHING
    assert (created.task_id, created.user_id, state(created)) == (task.id, task.user_id, "ACTIVE")
    # The first weekday of 2030 is Tuesday, in winter.
    assert created.next_fire_time.ToJsonString() == "2030-01-01T08:30:00Z"
    assert await read(client, created) == created


async def test_what_is_left_out_is_as_the_contract_says(api: Serving) -> None:
    schedule = await api.client().schedule()
    assert shown(schedule) == {
        "spec": {"cron_expression": "0 9 * * *", "time_zone": "UTC"},
        "overlap_policy": "SKIP",
        "catch_up_window": "86400s",
    }
    now = datetime.now(UTC)
    nine = now.replace(hour=9, minute=0, second=0, microsecond=0)
    assert schedule.next_fire_time.ToDatetime(UTC) in (nine, nine + timedelta(days=1))
    assert schedule.next_fire_time.ToDatetime(UTC) > now - timedelta(seconds=30)


@pytest.mark.parametrize("field", sorted(EVERYTHING))
async def test_a_change_changes_what_it_names_alone(api: Serving, field: str) -> None:
    client = api.client()
    task = await client.task(variables=VARIABLES)
    before = await client.schedule(task.id, variables={"repository": "x"})
    after = await client.UpdateSchedule(change(before, field, **EVERYTHING))
    assert shown(after) == {**shown(before), field: EVERYTHING[field]}
    assert after.etag != before.etag
    assert await read(client, before) == after


def test_every_field_of_a_change_is_tried() -> None:
    assert {field.name for field in pb.UpdateScheduleRequest.DESCRIPTOR.fields} - MINE == EVERYTHING.keys()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"spec": {"cron_expression": "0 0 30 2 *"}}, "spec.cron_expression"),
        ({"spec": {"cron_expression": "every day"}}, "spec.cron_expression"),
        ({"spec": {"cron_expression": "0 9 * * *", "time_zone": "Europe/Atlantis"}}, "spec.time_zone"),
        ({"spec": {"interval": "60s", "time_zone": "../etc/passwd"}}, "spec.time_zone"),
        ({"spec": {"interval": "0.5s"}}, "spec.interval"),
        ({"spec": {"interval": "1.5s"}}, "spec.interval"),
        ({"spec": {"interval": "60s", "jitter": "86401s"}}, "spec.jitter"),
        ({"spec": {"interval": "60s", "end_time": "2020-01-01T00:00:00Z"}}, "spec.end_time"),
        ({"spec": {"interval": "60s", "start_time": "0001-01-01T00:00:00Z"}}, "spec.start_time"),
        ({"spec": {}}, "spec.times"),
        ({"variables": {}}, "variables.repository"),
        ({"variables": {"repository": "x", "limit": "many"}}, "variables.limit"),
        ({"variables": {"repository": "x", "other": 1}}, "variables.other"),
        ({"variables": {"repository": "a\0"}}, "variables.repository"),
        ({"catch_up_window": "1s"}, "catch_up_window"),
        ({"remaining_runs": "0"}, "remaining_runs"),
        ({"name": "a\0"}, "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_breaks_a_rule_is_refused_with_the_field_named(
    api: Serving, fields: dict[str, Any], field: str
) -> None:
    client = api.client()
    task = await client.task(variables=VARIABLES)
    assert await field_of(client.CreateSchedule(creation(task.id, **fields))) == field
    schedule = await client.schedule(task.id, variables={"repository": "x"})
    assert await field_of(client.UpdateSchedule(change(schedule, **fields))) == field
    assert await read(client, schedule) == schedule


async def test_paused_it_has_no_next_fire_and_resumed_none_that_it_missed(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule(spec={"interval": {"seconds": 1}})
    paused = await move(client, schedule, "Pause", note="holiday")
    assert (state(paused), paused.note, paused.HasField("next_fire_time")) == ("PAUSED", "holiday", False)
    again = await move(client, schedule, "Pause", note="a longer one")
    assert (state(again), again.note) == ("PAUSED", "a longer one")
    (row,) = [row for row in await api.rows(schedules) if str(row["id"]) == schedule.id]
    assert (row["next_fire_time"], row["next_due_time"]) == (None, None)
    renamed = await client.UpdateSchedule(change(schedule, spec={"interval": "2s"}, remaining_runs="3"))
    assert (state(renamed), renamed.HasField("next_fire_time")) == ("PAUSED", False)
    begun = datetime.now(UTC)
    async with api.database.system() as connection:
        long_ago = schedules.update().where(schedules.c.task_id == schedule.task_id)
        await connection.execute(long_ago.values(handled_until=begun - timedelta(hours=1)))
    resumed = await move(client, schedule, "Resume", note="back")
    assert (state(resumed), resumed.note) == ("ACTIVE", "back")
    assert resumed.next_fire_time.ToDatetime(UTC) > begun - timedelta(seconds=1)
    assert resumed.spec.interval.seconds == 2


async def test_resuming_what_is_not_paused_keeps_its_next_fire(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    resumed = await move(client, schedule, "Resume", note="so it is")
    assert (state(resumed), resumed.next_fire_time) == ("ACTIVE", schedule.next_fire_time)


async def test_one_that_has_no_fire_left_has_ended_until_it_is_given_some(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    async with api.database.system() as connection:
        used_up = {"state": "ENDED", "remaining_runs": 0, "next_fire_time": None, "next_due_time": None}
        await connection.execute(
            schedules.update().where(schedules.c.task_id == schedule.task_id).values(**used_up)
        )
    ended = await read(client, schedule)
    assert (state(ended), ended.HasField("next_fire_time"), ended.remaining_runs) == ("ENDED", False, 0)
    assert state(await move(client, schedule, "Pause")) == "PAUSED"
    assert state(await move(client, schedule, "Resume")) == "ENDED"
    more = await client.UpdateSchedule(change(schedule, remaining_runs="2"))
    assert (state(more), more.next_fire_time) == ("ACTIVE", schedule.next_fire_time)
    endless = await client.UpdateSchedule(change(schedule, "remaining_runs"))
    assert (state(endless), endless.HasField("remaining_runs")) == ("ACTIVE", False)


async def test_a_change_of_what_was_not_seen_is_refused(api: Serving) -> None:
    client = api.client()
    seen = await client.schedule()
    now = await client.UpdateSchedule(change(seen, name="other"))
    late = pb.UpdateScheduleRequest(
        schedule_id=seen.id, name="mine", etag=seen.etag, update_mask={"paths": ["name"]}
    )
    assert await reason(client.UpdateSchedule(late)) == "ABORTED ETAG_MISMATCH"
    gone = pb.DeleteScheduleRequest(schedule_id=seen.id, etag=seen.etag)
    assert await reason(client.DeleteSchedule(gone)) == "ABORTED ETAG_MISMATCH"
    assert await read(client, seen) == now


async def test_what_is_deleted_is_not_there(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    other = await client.schedule(schedule.task_id)
    deletion = pb.DeleteScheduleRequest(schedule_id=schedule.id, request_id="once")
    await client.DeleteSchedule(deletion)
    await client.DeleteSchedule(deletion)
    assert await reason(read(client, schedule)) == "NOT_FOUND SCHEDULE_NOT_FOUND"
    # With its task the other one goes, too.
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=schedule.task_id))
    assert await reason(read(client, other)) == "NOT_FOUND SCHEDULE_NOT_FOUND"
    late = client.schedule(schedule.task_id)
    assert await reason(late) == "NOT_FOUND TASK_NOT_FOUND"


async def test_the_list_pages_and_filters(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    made = [(await client.schedule(task.id)).id for _ in range(5)]
    other = await client.schedule()
    await move(client, other, "Pause")
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListSchedulesRequest(task_id=task.id, page_size=2, page_token=token)
        page = await client.ListSchedules(request)
        found += [schedule.id for schedule in page.schedules]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    paused = (await client.ListSchedules(pb.ListSchedulesRequest(states=["PAUSED"]))).schedules
    assert [schedule.id for schedule in paused] == [other.id]
    first = await client.ListSchedules(pb.ListSchedulesRequest(page_size=2))
    wrong = pb.ListSchedulesRequest(page_token=first.next_page_token, task_id=task.id)
    assert await field_of(client.ListSchedules(wrong)) == "page_token"


async def test_a_request_id_moves_it_once(api: Serving) -> None:
    client = api.client()
    task = await client.task(variables=VARIABLES)
    once = creation(task.id, request_id="once")
    schedule = await client.CreateSchedule(once)
    assert await client.CreateSchedule(once) == schedule
    paused = await move(client, schedule, "Pause", note="a", request_id="pause")
    resumed = await move(client, schedule, "Resume")
    assert await move(client, schedule, "Pause", note="a", request_id="pause") == resumed != paused
    reused = move(client, schedule, "Pause", note="b", request_id="pause")
    assert await reason(reused) == "INVALID_ARGUMENT REQUEST_ID_REUSED"


async def test_the_preview_tells_the_wall_clock_around_a_change_of_it(api: Serving) -> None:
    spec = {"cron_expression": "30 2 * * *", "time_zone": "Europe/Berlin"}
    fires = await preview(api.client(), spec=spec, count=3, after="2026-03-28T00:00:00Z")
    assert [(fire.fire_time.ToJsonString(), fire.local_time) for fire in fires] == [
        ("2026-03-28T01:30:00Z", "2026-03-28T02:30:00+01:00"),
        ("2026-03-29T01:00:00Z", "2026-03-29T03:00:00+02:00"),
        ("2026-03-30T00:30:00Z", "2026-03-30T02:30:00+02:00"),
    ]
    assert all(fire.due_time == fire.fire_time for fire in fires)


async def test_the_preview_of_a_schedule_is_what_it_will_do(api: Serving) -> None:
    client = api.client()
    spec = {"interval": {"seconds": 3600}, "jitter": {"seconds": 600}}
    schedule = await client.schedule(spec=spec, remaining_runs=3)
    fires = await preview(client, schedule_id=schedule.id)
    assert len(fires) == 3
    assert fires[0].fire_time == schedule.next_fire_time
    late = [fire.due_time.ToDatetime() - fire.fire_time.ToDatetime() for fire in fires]
    assert all(timedelta() <= share < timedelta(minutes=10) for share in late)
    assert len(set(late)) > 1
    (row,) = [row for row in await api.rows(schedules) if str(row["id"]) == schedule.id]
    assert row["next_due_time"] == fires[0].due_time.ToDatetime(UTC)
    await move(client, schedule, "Pause")
    assert await preview(client, schedule_id=schedule.id) == fires
    assert len(await preview(client, schedule_id=schedule.id, after="9997-12-31T00:00:00Z")) == 3


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "spec"),
        ({"spec": {"interval": "60s"}, "schedule_id": "0198c7a0-5d1e-7c3a-9f00-3b1d2e4f5a6b"}, "spec"),
        ({"spec": {"cron_expression": "99 * * * *"}}, "spec.cron_expression"),
        ({"spec": {"interval": "60s"}, "count": 101}, "count"),
        ({"spec": {"interval": "60s"}, "after": "1969-12-31T00:00:00Z"}, "after"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_preview_of_nonsense_is_refused(api: Serving, fields: dict[str, Any], field: str) -> None:
    assert await field_of(preview(api.client(), **fields)) == field
