"""What one schedule suffers from keeps no other from firing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.errors import ServiceError
from services.scheduler.domain.entities import TaskVariable
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import Timing
from services.scheduler.domain.variables import VariableType
from services.scheduler.store.firing import FiringTransaction
from services.scheduler.store.tables import runs

from .ticking import MINUTE, Clockwork, clockwork

pytestmark = pytest.mark.integration
P = OverlapPolicy
WHO = TaskVariable("who", VariableType.STRING, required=True)


@pytest.fixture
async def works(scheduler_database: Database) -> AsyncIterator[Clockwork]:
    async with clockwork(scheduler_database) as made:
        yield made


async def test_one_that_cannot_be_read_is_paused_and_the_others_fire(works: Clockwork) -> None:
    broken, whole = await works.due(timing=Timing(cron_expression="* * * * *")), await works.due()
    await works.change(broken.id, time_zone="Atlantis/Centre")
    await works.tick()
    row = await works.read(broken)
    assert (row.state, row.next_due_time, row.version) == ("PAUSED", None, broken.version + 1)
    assert "spec.time_zone" in row.note
    assert len(await works.runs(whole)) == 1


async def test_a_run_that_somebody_holds_keeps_no_other_schedule_waiting(works: Clockwork) -> None:
    held = await works.due(overlap_policy=P.CANCEL_OTHER)
    await works.tick()
    (run,) = await works.runs(held)
    await works.change_run(run.id, fire_time=run.fire_time - 9 * MINUTE)
    await works.rewind(held, MINUTE)
    others = [await works.due() for _ in range(3)]
    async with works.database.dedicated_system() as connection:
        await connection.execute(sa.select(runs).where(runs.c.id == run.id).with_for_update())
        await works.tick()
        assert [len(await works.runs(other)) for other in others] == [1, 1, 1]
        assert await works.states(held) == ["QUEUED"]
    await works.tick()
    assert await works.states(held) == ["CANCELLED", "QUEUED"]


async def test_a_task_that_cannot_be_read_pauses_its_schedule_and_the_others_fire(works: Clockwork) -> None:
    broken, whole = await works.due(2 * MINUTE), await works.due()
    await works.spoil(broken)
    await works.tick()
    row = await works.read(broken)
    assert (row.state, row.next_due_time, row.version) == ("PAUSED", None, broken.version + 1)
    assert len(await works.runs(whole)) == 1


async def test_however_many_are_held_the_others_fire(works: Clockwork) -> None:
    held = [await works.due(3 * MINUTE, overlap_policy=P.CANCEL_OTHER) for _ in range(12)]
    await works.tick()
    ids = []
    for schedule in held:
        run = (await works.runs(schedule))[-1]
        ids.append(run.id)
        await works.change_run(run.id, fire_time=run.fire_time - 19 * MINUTE)
        await works.rewind(schedule, MINUTE)
    other = await works.due()
    async with works.database.dedicated_system() as connection:
        await connection.execute(sa.select(runs).where(runs.c.id.in_(ids)).with_for_update())
        # Nobody waits for a lock: it is all done in two looks.
        ticker = works.ticker()
        assert await ticker.tick()
        assert not await ticker.tick()
        assert len(await works.runs(other)) == 1


async def test_a_look_that_is_frozen_is_undone_by_the_database(works: Clockwork) -> None:
    schedule = await works.due()
    with pytest.raises(ServiceError, match="cannot be reached"):
        async with works.database.system(idle_seconds=0.05) as connection:
            assert await FiringTransaction(connection).take_due(1, [])
            async with asyncio.timeout(20):
                # As a process that is stopped here for a while.
                while not await free_to_take(works):
                    await asyncio.sleep(0.01)
            await connection.execute(sa.text("SELECT 1"))
    await works.tick()
    assert len(await works.runs(schedule)) == 1


async def free_to_take(works: Clockwork) -> bool:
    """Whether a due schedule is to be had."""
    async with works.queries.begin() as transaction:
        return bool(await transaction.take_due(1, []))


async def test_no_look_may_be_idle_for_long(works: Clockwork) -> None:
    async with works.queries.begin() as transaction:
        shown = await transaction._connection.execute(sa.text("SHOW idle_in_transaction_session_timeout"))
        assert shown.scalar_one() == "5s"
