"""Where somebody stands still with a lock in hand, only what is locked waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.scheduler.domain.states import RunState
from services.scheduler.store.tables import runs, schedules
from services.scheduler.usecases.tasks import UpdateTask
from services.scheduler.usecases.worker.ports import NOT_YET, Progress
from tests.databases import Copy

from .test_endings import SUCCEEDED, Planned, claims, planned
from .working import Floor, floor

pytestmark = pytest.mark.integration


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


async def test_what_is_locked_keeps_nothing_else_from_its_end(place: Floor) -> None:
    """Whoever stands still with two schedules and a run keeps their runs alone, and none of them counts as lost."""
    held = [await planned(place) for _ in range(2)]
    for schedule in held:
        await schedule.run("QUEUED")
    free = await planned(place)
    runs_ = [await free.run("QUEUED"), (await place.run()).run.id, (locked := await place.run()).run.id]
    found = {claim.run_id: claim for claim in await claims(place, 5)}
    lost = found[runs_[0]]
    await place.expire(await place.runs.get(free.caller, lost.run_id))
    (found[lost.run_id],) = await place.queue().take("another", 1)
    steps = [Progress(claim, outcome=SUCCEEDED) for claim in [*found.values(), lost]]
    async with place.database.relay_system() as connection:
        ids = [schedule.id for schedule in held]
        await connection.execute(sa.select(schedules.c.id).where(schedules.c.id.in_(ids)).with_for_update())
        await connection.execute(sa.select(runs.c.id).where(runs.c.id == locked.run.id).with_for_update())
        async with asyncio.timeout(2):
            states = await place.queue().record(steps)
        written = [
            state for state, step in zip(states, steps, strict=True) if step.claim.run_id in set(runs_[:2])
        ]
        assert written == [RunState.SUCCEEDED, RunState.SUCCEEDED, None]
        assert states.count(NOT_YET) == 3
    assert set(await place.queue().record(steps)) == {RunState.SUCCEEDED, None}


async def test_a_worker_waits_with_the_end_of_what_is_locked(place: Floor) -> None:
    held = [await planned(place) for _ in range(3)]
    async with place.database.relay_system() as connection:
        for schedule in held:
            await schedule.run("QUEUED")
        ids = [schedule.id for schedule in held]
        await connection.execute(sa.select(schedules.c.id).where(schedules.c.id.in_(ids)).with_for_update())
        worker = await place.worker(8, lease_seconds=0.5)
        async with asyncio.timeout(4):
            free = await place.ended(await place.run())
        assert free.run.state is RunState.SUCCEEDED
        # Longer than a lease: nobody takes over what its worker has still.
        async with asyncio.timeout(4):
            while len(place.sessions.sessions) < 4:
                await asyncio.sleep(0.01)
        assert worker.under_way == 3
    for schedule in held:
        async with asyncio.timeout(10):
            while await schedule.states() != ["SUCCEEDED"]:
                await asyncio.sleep(0.01)
    async with place.database.system() as connection:
        assert set((await connection.execute(sa.select(runs.c.epoch))).scalars()) == {1}


async def test_a_task_that_changes_locks_its_schedules_in_their_order(place: Floor, databases: Copy) -> None:
    """As whoever else locks several: it waits for the first one with none in hand, however they lie in the table."""
    first = await planned(place)
    others = [Planned(place, first.caller, first.task_id) for _ in range(2)]
    row = (await first.row())._asdict()
    async with place.database.system() as connection:
        for other in others:
            await connection.execute(sa.insert(schedules).values(row | {"id": other.id}))
        # It lies behind the others now.
        await connection.execute(sa.update(schedules).where(schedules.c.id == first.id).values(name="moved"))
    # Known to be few, they are read as they lie.
    admin = await databases.server.connect(databases.name)
    await admin.execute("ANALYZE scheduler.schedules")
    await admin.close()
    async with place.database.system() as connection:
        await connection.execute(
            sa.select(schedules.c.id).where(schedules.c.id == first.id).with_for_update()
        )
        change = place.tasks.update(first.caller, UpdateTask(first.task_id, {"name": "n"}, "", ""))
        changing = asyncio.create_task(change)
        async with asyncio.timeout(10):
            while not await number_waiting(connection):
                await asyncio.sleep(0.005)
        ids = [other.id for other in others]
        query = sa.select(schedules.c.id).where(schedules.c.id.in_(ids)).with_for_update(nowait=True)
        assert len((await connection.execute(query)).all()) == 2
    assert (await changing).content.name == "n"


async def number_waiting(connection: AsyncConnection) -> int:
    """How many wait for this transaction."""
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid = CAST(pg_current_xact_id() AS xid)"
    return int((await connection.execute(sa.text(query))).scalar_one())
