"""How long runs wait for a worker, and when a consumer that hears nothing is to be mistrusted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from deploy.local.ports import free_port
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.errors import unavailable
from services.kernel.kafka import app
from services.kernel.telemetry import registry
from services.kernel.testing import a_caller
from services.scheduler.bootstrap import carrying
from services.scheduler.store.system_queries import WaitingQueries
from services.scheduler.store.tables import outbox
from services.scheduler.usecases.runs import ShownRun
from services.scheduler.usecases.watchdog import QueueWatch
from services.scheduler.usecases.worker import RunWorker
from tests.kafka_broker import LocalBroker

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


async def test_nothing_waits_that_no_claim_would_bring(scheduler_database: Database) -> None:
    async with floor(scheduler_database) as it:
        busy = a_caller()
        for _ in range(2):
            await waits_since(it, await it.run(busy), 60)
        assert len(await it.queue(per_user=1).take("w", 5)) == 1
        assert await it.queue(per_user=1).take("w", 5) == []
        limited = WaitingQueries(scheduler_database, per_user=1)
        assert await limited.oldest_seconds() == 0
        assert not await QueueWatch(limited, lambda: True).work_waits()
        # Where two may go at once it was overlooked.
        assert await QueueWatch(WaitingQueries(scheduler_database, per_user=2), lambda: True).work_waits()
        assert len(await it.queue(per_user=2).take("w", 5)) == 1


async def told_before(database: Database, seconds: float | None) -> None:
    """Says of all facts that they were published so long ago; None for not yet."""
    time = None if seconds is None else sa.func.clock_timestamp() - timedelta(seconds=seconds)
    async with database.system() as connection:
        await connection.execute(sa.update(outbox).values(publish_time=time))


async def test_work_waits_where_a_place_is_free(scheduler_database: Database) -> None:
    free = True
    async with floor(scheduler_database) as it:
        await told_before(scheduler_database, None)
        watch = QueueWatch(WaitingQueries(scheduler_database), lambda: free)
        run = await it.run()
        assert not await watch.work_waits()
        await waits_since(it, run, 11)
        assert await watch.work_waits()
        assert (registry.get_sample_value("aiagent_task_runs_oldest_queued_seconds") or 0) >= 11
        free = False
        assert not await watch.work_waits()


@pytest.mark.parametrize(
    ("seconds", "deaf"), [(None, False), (1.0, False), (15.0, True), (60.0, False)], ids=str
)
async def test_who_hears_nothing_of_what_was_told_is_deaf(
    scheduler_database: Database, seconds: float | None, deaf: bool
) -> None:
    async with floor(scheduler_database) as it:
        await it.run()
        await told_before(scheduler_database, seconds)
        assert await QueueWatch(WaitingQueries(scheduler_database), lambda: False).work_waits() == deaf


async def test_a_deaf_consumer_is_begun_anew(
    scheduler_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LOCAL_SESSION_SECONDS", 1.0)
    monkeypatch.setattr(carrying, "SILENT_SECONDS", 0.1)

    def restarts() -> float:
        labels = {"group": "scheduler-workers", "why": "silent"}
        return registry.get_sample_value("aiagent_stream_restarts_total", labels) or 0.0

    broker, before = LocalBroker(free_port()), restarts()
    await broker.start()
    async with floor(scheduler_database) as it:
        await it.run()
        await told_before(scheduler_database, 15.0)
        watch = QueueWatch(WaitingQueries(scheduler_database), lambda: True)
        worker = RunWorker(it.queue(), it.sessions, holder="nobody", clock=SystemClock(), places=1)
        consumer = carrying.consumer_of(broker.broker, worker, watch, SystemClock())
        assert consumer is not None
        task = asyncio.create_task(consumer.run())
        try:
            async with asyncio.timeout(20):
                while restarts() == before:
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            broker.kill()


async def test_a_database_that_is_away_is_no_reason_to_begin_anew() -> None:
    class Away:
        async def oldest_seconds(self) -> float:
            raise unavailable("DATABASE_UNAVAILABLE", "away", retry_after_seconds=1)

        async def was_told(self, earliest_seconds: float, latest_seconds: float) -> bool:
            raise unavailable("DATABASE_UNAVAILABLE", "away", retry_after_seconds=1)

    watch = QueueWatch(Away(), lambda: True)
    assert await watch.measure() is None
    assert not await watch.work_waits()
