"""How long deliveries are kept, and what they keep: a run, and a deleted task, stay until what they say is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.testing import a_caller
from services.scheduler.domain.webhooks import Webhook
from services.scheduler.store.system_queries import HouseKeeping
from services.scheduler.store.webhook_tables import webhook_deliveries

from .sending import Hall

pytestmark = pytest.mark.integration


async def test_the_runs_of_a_deleted_task_are_told_of_before_it_goes(hall: Hall) -> None:
    caller = a_caller()
    task_id = await hall.floor.task(caller, webhook=Webhook(hall.receiver.url))
    run = await hall.floor.run(caller, task_id)
    await hall.floor.tasks.delete(caller, task_id, "", "")
    house = HouseKeeping(hall.floor.database, keep_runs=timedelta())
    while await house.purge():
        pass
    assert len(await hall.deliveries(run.run.id)) == 1
    await hall.sender()
    await hall.until(run.run.id, "SUCCEEDED")
    assert await house.purge() >= 1
    assert await hall.deliveries(run.run.id) == []


async def test_a_run_stays_while_a_receiver_is_to_be_told_of_it(hall: Hall) -> None:
    told, untold = await hall.ended(), await hall.ended()
    over = {"state": "SUCCEEDED", "next_attempt_time": None, "end_time": sa.func.clock_timestamp()}
    await hall.change(told, **over)
    house = HouseKeeping(hall.floor.database, keep_runs=timedelta())
    while await house.purge():
        pass
    assert await hall.deliveries(told) == []
    assert [row["state"] for row in await hall.deliveries(untold)] == ["PENDING"]
    await hall.change(untold, **over)
    assert await house.purge() == 1
    assert await hall.deliveries(untold) == []


async def test_old_deliveries_go(hall: Hall) -> None:
    await hall.sender()
    old, new = await hall.ended(), await hall.ended()
    for run_id in (old, new):
        await hall.until(run_id, "SUCCEEDED")
    async with hall.floor.database.system() as connection:
        await connection.execute(
            sa.update(webhook_deliveries)
            .where(webhook_deliveries.c.run_id == old)
            .values(end_time=sa.func.clock_timestamp() - timedelta(days=31))
        )
    await HouseKeeping(hall.floor.database).purge()
    assert await hall.deliveries(old) == []
    assert len(await hall.deliveries(new)) == 1
