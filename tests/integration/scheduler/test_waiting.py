"""How long runs wait for a worker, and when a consumer that hears nothing is to be mistrusted."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.errors import unavailable
from services.kernel.telemetry import registry
from services.kernel.testing import a_caller
from services.scheduler.store.system_queries import WaitingQueries
from services.scheduler.usecases.runs import ShownRun
from services.scheduler.usecases.watchdog import QueueWatch

from .working import Floor, floor

pytestmark = pytest.mark.integration


async def waits_since(it: Floor, run: ShownRun, seconds: float) -> None:
    await it.change(run, available_time=sa.func.clock_timestamp() - timedelta(seconds=seconds))


async def test_the_oldest_run_that_a_worker_may_take(scheduler_database: Database) -> None:
    async with floor(scheduler_database) as it:
        waiting = WaitingQueries(scheduler_database)
        assert await waiting.oldest_seconds() == 0
        # Its pause is not over.
        await waits_since(it, await it.run(), -60)
        assert await waiting.oldest_seconds() == 0
        # Its task has as many under way as it may have.
        caller = a_caller()
        task = await it.task(caller, max_concurrent_runs=1)
        under_way, second = await it.run(caller, task), await it.run(caller, task)
        await waits_since(it, second, 500)
        await it.change(
            under_way,
            state="RUNNING",
            lease_holder="somebody",
            lease_expire_time=sa.func.clock_timestamp() + timedelta(minutes=1),
        )
        assert await waiting.oldest_seconds() == 0
        await waits_since(it, await it.run(), 20)
        await waits_since(it, await it.run(), 30)
        assert 30 <= await waiting.oldest_seconds() < 60
        await it.change(under_way, state="CANCELLED", lease_expire_time=None, end_time=sa.func.now())
        assert await waiting.oldest_seconds() >= 500


async def test_work_waits_where_a_place_is_free(scheduler_database: Database) -> None:
    free = True
    async with floor(scheduler_database) as it:
        watch = QueueWatch(WaitingQueries(scheduler_database), lambda: free)
        run = await it.run()
        assert not await watch.work_waits()
        await waits_since(it, run, 11)
        assert await watch.work_waits()
        assert (registry.get_sample_value("aiagent_task_runs_oldest_queued_seconds") or 0) >= 11
        free = False
        assert not await watch.work_waits()


async def test_a_database_that_is_away_is_no_reason_to_begin_anew() -> None:
    class Away:
        async def oldest_seconds(self) -> float:
            raise unavailable("DATABASE_UNAVAILABLE", "away", retry_after_seconds=1)

    watch = QueueWatch(Away(), lambda: True)
    assert await watch.measure() is None
    assert not await watch.work_waits()
