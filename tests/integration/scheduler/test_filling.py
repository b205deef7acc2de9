"""Backfills: fires of the past, made beside those that are due."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.ids import Uuid7Source
from services.scheduler.domain.entities import TaskVariable
from services.scheduler.domain.overlap import MAX_BUFFERED, OverlapPolicy
from services.scheduler.domain.schedules import Schedule, Timing
from services.scheduler.domain.variables import VariableType
from services.scheduler.store.tables import backfills, runs

from .ticking import MINUTE, Clockwork, clockwork, owner

pytestmark = pytest.mark.integration
P = OverlapPolicy
WHO = TaskVariable("who", VariableType.STRING, required=True)


@pytest.fixture
async def works(scheduler_database: Database) -> AsyncIterator[Clockwork]:
    async with clockwork(scheduler_database) as made:
        yield made


async def backfill(works: Clockwork, schedule: Schedule, span: timedelta, policy: P) -> UUID:
    """Asks for the fires of a span before now."""
    backfill_id = Uuid7Source().new_id()
    start = works.now - span
    async with works.database.system() as connection:
        await connection.execute(
            sa.insert(backfills).values(
                id=backfill_id,
                organization_id=schedule.organization_id,
                user_id=schedule.user_id,
                schedule_id=schedule.id,
                start_time=start,
                end_time=works.now,
                overlap_policy=policy.value,
                state="RUNNING",
                handled_until=start - timedelta(microseconds=1),
            )
        )
    return backfill_id


async def read_backfill(works: Clockwork, backfill_id: UUID) -> Any:
    async with works.database.system() as connection:
        return (await connection.execute(sa.select(backfills).where(backfills.c.id == backfill_id))).one()


async def test_a_backfill_makes_every_fire_of_its_span_once_more(works: Clockwork) -> None:
    schedule = await works.due(3 * MINUTE)
    await works.tick()
    backfill_id = await backfill(works, schedule, 70 * MINUTE, P.ALLOW_ALL)
    await works.tick()
    made = [run for run in await works.runs(schedule) if run.backfill_id == backfill_id]
    assert [run.fire_time for run in made] == [
        works.now - timedelta(seconds=1) - n * MINUTE for n in range(69, -1, -1)
    ]
    assert {run.state for run in made} == {"QUEUED"}
    assert all(run.due_time >= works.now for run in made)
    row = await read_backfill(works, backfill_id)
    assert (row.state, row.fire_count, row.handled_until) == ("COMPLETED", 70, row.end_time)
    assert len(await works.runs(schedule)) == 73


async def test_a_backfill_waits_for_room_instead_of_leaving_fires_out(works: Clockwork) -> None:
    schedule = await works.schedule()
    backfill_id = await backfill(works, schedule, 130 * MINUTE, P.BUFFER_ALL)
    await works.tick()
    assert await works.states(schedule) == ["QUEUED"] + ["PENDING"] * MAX_BUFFERED
    row = await read_backfill(works, backfill_id)
    assert (row.state, row.fire_count) == ("RUNNING", 1 + MAX_BUFFERED)
    assert row.available_time > row.create_time
    async with works.database.system() as connection:
        over = {"state": "CANCELLED", "end_time": sa.func.clock_timestamp()}
        await connection.execute(sa.update(runs).where(runs.c.schedule_id == schedule.id).values(over))
        await connection.execute(sa.update(backfills).values(available_time=works.now))
    await works.tick()
    row = await read_backfill(works, backfill_id)
    assert (row.state, row.fire_count) == ("COMPLETED", 130)
    assert (await works.states(schedule)).count("SKIPPED") == 0


@pytest.mark.parametrize("ended", [False, True])
async def test_a_backfill_of_a_schedule_that_does_not_fire_is_made(works: Clockwork, ended: bool) -> None:
    schedule = await works.schedule()
    if ended:
        await works.change(schedule.id, state="ENDED", next_fire_time=None, next_due_time=None)
    else:
        await works.schedules.pause(owner(schedule), schedule.id, "", "")
    # Also where its task has changed since.
    await works.retask(schedule, name="another name")
    assert await works.prompts().render_some()
    await backfill(works, schedule, 2 * MINUTE, P.SKIP)
    await works.tick()
    assert await works.states(schedule) == ["QUEUED", "SKIPPED"]


async def test_a_backfill_whose_schedule_cannot_be_read_is_given_up(works: Clockwork) -> None:
    schedule = await works.schedule(timing=Timing(cron_expression="* * * * *"))
    await works.change(schedule.id, time_zone="Atlantis/Centre")
    backfill_id = await backfill(works, schedule, 2 * MINUTE, P.SKIP)
    await works.tick()
    assert (await read_backfill(works, backfill_id)).state == "CANCELLED"


async def test_a_backfill_that_somebody_holds_delays_neither_schedules_nor_others(works: Clockwork) -> None:
    held = await works.due(overlap_policy=P.CANCEL_OTHER)
    await works.tick()
    (run,) = await works.runs(held)
    stuck = await backfill(works, held, MINUTE, P.CANCEL_OTHER)
    other = await works.schedule()
    free = await backfill(works, other, 2 * MINUTE, P.ALLOW_ALL)
    backfiller, ticker = works.backfiller(), works.ticker()
    async with works.database.dedicated_system() as connection:
        await connection.execute(sa.select(runs).where(runs.c.id == run.id).with_for_update())
        assert await backfiller.fill(), "the one that is held comes first, and is set aside"
        due = await works.due()
        await ticker.tick()
        assert len(await works.runs(due)) == 1
        while await backfiller.fill():
            pass
        assert (await read_backfill(works, free)).state == "COMPLETED"
        assert (await read_backfill(works, stuck)).state == "RUNNING"
        assert await works.queries.seconds_to_backfill([stuck]) is None
    while await works.backfiller().fill():
        pass
    assert (await read_backfill(works, stuck)).state == "COMPLETED"


async def test_a_backfill_whose_task_cannot_be_read_is_given_up(works: Clockwork) -> None:
    broken, whole = await works.schedule(), await works.schedule()
    ids = [await backfill(works, schedule, 2 * MINUTE, P.SKIP) for schedule in (broken, whole)]
    await works.spoil(broken)
    await works.tick()
    assert [(await read_backfill(works, one)).state for one in ids] == ["CANCELLED", "COMPLETED"]
