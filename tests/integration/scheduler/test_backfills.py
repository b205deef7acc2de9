"""Backfills as clients ask for them: what is recorded, and what is refused. Nobody makes their fires here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.identity import Role
from services.scheduler.bootstrap.firing import Firing
from services.scheduler.store.notes import SCHEDULES_CHANGED
from services.scheduler.store.tables import backfills
from tests.databases import Copy
from tests.integration.session.serving import reason, refusal

from .serving import Client, Serving, field_of, serving

pytestmark = pytest.mark.integration
START = datetime(2026, 3, 2, 9, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SECONDS = {"spec": {"interval": {"seconds": 1}}}


@pytest.fixture(scope="module")
async def api(databases: Copy) -> AsyncIterator[Serving]:
    """A service without a tick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Firing, "begin", lambda *_: None)
        async with serving(databases) as running:
            yield running


def asking(schedule: schedule_pb2.Schedule, **fields: Any) -> pb.BackfillScheduleRequest:
    """Asks for the fires of three days, by default."""
    span = {"start_time": START, "end_time": START + timedelta(days=2)}
    return pb.BackfillScheduleRequest(schedule_id=schedule.id, **{**span, **fields})


async def filled(client: Client, **fields: Any) -> schedule_pb2.ScheduleBackfill:
    """A backfill of a new schedule."""
    made: schedule_pb2.ScheduleBackfill = await client.BackfillSchedule(
        asking(await client.schedule(), **fields)
    )
    return made


async def violation(call: Any) -> tuple[str, str]:
    error = await refusal(call)
    assert error.reason == "INVALID_REQUEST"
    return error.violations[0].field, error.violations[0].reason


async def test_a_backfill_is_recorded_as_it_was_asked_for(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule(overlap_policy="BUFFER_ALL")
    made = await client.BackfillSchedule(asking(schedule))
    assert (made.schedule_id, made.user_id, made.organization_id) == (
        schedule.id,
        schedule.user_id,
        schedule.organization_id,
    )
    assert (made.start_time.ToDatetime(UTC), made.end_time.ToDatetime(UTC)) == (
        START,
        START + timedelta(days=2),
    )
    assert (made.state, made.fire_count) == (schedule_pb2.ScheduleBackfill.RUNNING, 0)
    assert not made.HasField("complete_time")
    assert made.overlap_policy == schedule_pb2.Schedule.BUFFER_ALL
    assert await client.GetScheduleBackfill(pb.GetScheduleBackfillRequest(backfill_id=made.id)) == made
    other = await client.BackfillSchedule(asking(schedule, overlap_policy="ALLOW_ALL"))
    assert other.overlap_policy == schedule_pb2.Schedule.ALLOW_ALL
    row = next(row for row in await api.rows(backfills) if str(row["id"]) == made.id)
    # The first fire, at START itself, is yet to be made.
    assert row["handled_until"] == START - TICK
    # It changes nothing of the schedule, and asks nothing of it: a paused one is filled, too.
    assert await client.GetSchedule(pb.GetScheduleRequest(schedule_id=schedule.id)) == schedule
    await client.PauseSchedule(pb.PauseScheduleRequest(schedule_id=schedule.id))
    await client.BackfillSchedule(asking(schedule))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"end_time": START - TICK}, ("end_time", "INVALID")),
        ({"end_time": datetime.now(UTC) + timedelta(days=1)}, ("end_time", "INVALID")),
        ({"start_time": datetime(1969, 12, 31, tzinfo=UTC)}, ("start_time", "INVALID")),
        ({"start_time": Timestamp(seconds=2**62)}, ("start_time", "INVALID")),
        ({"start_time": Timestamp(seconds=-(2**62))}, ("start_time", "INVALID")),
        ({"end_time": Timestamp(seconds=1, nanos=-1)}, ("end_time", "INVALID")),
        ({"start_time": START + TICK, "end_time": START + timedelta(hours=2)}, ("end_time", "NEVER_FIRES")),
    ],
    ids=("turned", "future", "before 1970", "far off", "long ago", "negative", "between two fires"),
)
async def test_a_span_that_cannot_be_filled_is_refused(
    api: Serving, fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    client = api.client()
    schedule = await client.schedule()
    assert await violation(client.BackfillSchedule(asking(schedule, **fields))) == expected
    assert await _listed(client, schedule.id) == []


@pytest.mark.parametrize("field", ["start_time", "end_time"])
async def test_both_ends_are_needed(api: Serving, field: str) -> None:
    client = api.client()
    assert await field_of(client.BackfillSchedule(asking(await client.schedule(), **{field: None}))) == field


async def test_both_ends_are_included_and_bounds_of_the_schedule_hold(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    await client.BackfillSchedule(asking(schedule, end_time=START))
    spec = {"cron_expression": "0 9 * * *", "start_time": START + timedelta(days=30)}
    later = await client.schedule(spec=spec)
    assert await violation(client.BackfillSchedule(asking(later))) == ("end_time", "NEVER_FIRES")


async def test_ten_thousand_fires_and_no_more(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule(**SECONDS)
    last = START + timedelta(seconds=9_999)
    await client.BackfillSchedule(asking(schedule, end_time=last))
    counting = violation(client.BackfillSchedule(asking(schedule, end_time=last + timedelta(seconds=1))))
    assert await counting == ("end_time", "TOO_MANY")


async def test_counting_keeps_nobody_waiting(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule(**SECONDS)
    counting = [asyncio.ensure_future(client.BackfillSchedule(asking(schedule))) for _ in range(4)]
    answered = 0
    while not all(call.done() for call in counting):
        await client.get(schedule.task_id)
        answered += 1
    assert {await reason(call) for call in counting} == {"INVALID_ARGUMENT INVALID_REQUEST"}
    # Also the schedule: its row is not held meanwhile.
    assert answered > 10
    await client.PauseSchedule(pb.PauseScheduleRequest(schedule_id=schedule.id))


async def test_a_repeated_call_makes_no_second_one(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    first = await client.BackfillSchedule(asking(schedule, request_id="once"))
    # Also when it would be refused by now.
    change = pb.UpdateScheduleRequest(schedule_id=schedule.id, spec={"cron_expression": "0 0 29 2 *"})
    change.update_mask.paths.append("spec")
    await client.UpdateSchedule(change)
    assert await client.BackfillSchedule(asking(schedule, request_id="once")) == first
    again = client.BackfillSchedule(asking(schedule, request_id="once", overlap_policy="SKIP"))
    assert await reason(again) == "INVALID_ARGUMENT REQUEST_ID_REUSED"
    assert await _listed(client, schedule.id) == [first.id]


async def test_lists_page_the_newest_first(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    made = [(await client.BackfillSchedule(asking(schedule))).id for _ in range(3)]
    await filled(client)
    request = pb.ListScheduleBackfillsRequest(schedule_id=schedule.id, page_size=2)
    first = await client.ListScheduleBackfills(request)
    request.page_token = first.next_page_token
    second = await client.ListScheduleBackfills(request)
    assert [found.id for found in (*first.backfills, *second.backfills)] == made[::-1]
    assert second.next_page_token == ""
    request.schedule_id = (await client.schedule()).id
    assert await field_of(client.ListScheduleBackfills(request)) == "page_token"
    nowhere = pb.ListScheduleBackfillsRequest(schedule_id=str(uuid4()))
    assert await reason(client.ListScheduleBackfills(nowhere)) == "NOT_FOUND SCHEDULE_NOT_FOUND"


async def test_a_cancelled_one_stays_so_and_one_that_is_over_too(api: Serving) -> None:
    client = api.client()
    made = await filled(client)
    cancel = pb.CancelScheduleBackfillRequest(backfill_id=made.id, request_id="once")
    cancelled = await client.CancelScheduleBackfill(cancel)
    assert cancelled.state == schedule_pb2.ScheduleBackfill.CANCELLED
    assert cancelled.HasField("complete_time")
    assert await client.CancelScheduleBackfill(cancel) == cancelled
    cancel.request_id = "twice"
    assert await client.CancelScheduleBackfill(cancel) == cancelled
    over = await filled(client)
    async with api.database.system() as connection:
        done = {"state": "COMPLETED", "complete_time": sa.func.clock_timestamp(), "fire_count": 3}
        await connection.execute(sa.update(backfills).where(backfills.c.id == UUID(over.id)).values(done))
    found = await client.CancelScheduleBackfill(pb.CancelScheduleBackfillRequest(backfill_id=over.id))
    assert (found.state, found.fire_count) == (schedule_pb2.ScheduleBackfill.COMPLETED, 3)


async def test_a_tick_at_work_is_waited_for(api: Serving) -> None:
    client = api.client()
    made = await filled(client)
    async with api.database.system() as connection:
        # As a tick does.
        await connection.execute(
            sa.text("SELECT 1 FROM scheduler.schedules WHERE id = :id FOR UPDATE"),
            {"id": UUID(made.schedule_id)},
        )
        cancelling = asyncio.ensure_future(
            client.CancelScheduleBackfill(pb.CancelScheduleBackfillRequest(backfill_id=made.id))
        )
        await _blocked(api)
        assert not cancelling.done()
        row = sa.update(backfills).where(backfills.c.id == UUID(made.id))
        await connection.execute(row.values(fire_count=2, handled_until=START + timedelta(days=1)))
    cancelled = await cancelling
    assert (cancelled.state, cancelled.fire_count) == (schedule_pb2.ScheduleBackfill.CANCELLED, 2)


async def test_it_belongs_to_the_schedules_owner_and_goes_with_it(api: Serving) -> None:
    owner = api.client()
    schedule = await owner.schedule()
    made = await api.colleague(owner, Role.ADMIN).BackfillSchedule(asking(schedule))
    assert made.user_id == schedule.user_id
    get = pb.GetScheduleBackfillRequest(backfill_id=made.id)
    assert await owner.GetScheduleBackfill(get) == made
    await owner.DeleteSchedule(pb.DeleteScheduleRequest(schedule_id=schedule.id))
    assert await reason(owner.GetScheduleBackfill(get)) == "NOT_FOUND BACKFILL_NOT_FOUND"


async def test_ticks_of_this_process_hear_of_it(api: Serving) -> None:
    client = api.client()
    noted: list[str] = []
    schedule = await client.schedule()
    api.service._database.on_commit(SCHEDULES_CHANGED, lambda: noted.append("yes"))
    await client.BackfillSchedule(asking(schedule))
    assert noted == ["yes"]


async def _listed(client: Client, schedule_id: str) -> list[str]:
    listed = await client.ListScheduleBackfills(pb.ListScheduleBackfillsRequest(schedule_id=schedule_id))
    return [found.id for found in listed.backfills]


async def _blocked(api: Serving) -> None:
    """Returns when a statement of the application role waits for a lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND usename = 'scheduler_application' AND datname = current_database()"
    )
    async with asyncio.timeout(5):
        while True:
            async with api.database.system() as connection:
                if (await connection.execute(query)).scalar_one():
                    return
            await asyncio.sleep(0.01)
