"""Runs made by one process are carried by others: woken through the broker, whoever is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from deploy.local.ports import free_port
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.kafka.settings import Broker
from services.kernel.testing import a_caller
from services.scheduler.bootstrap.carrying import relay_to
from services.scheduler.domain.states import RunState
from services.scheduler.store.tables import runs
from services.scheduler.usecases.runs import ShownRun
from tests.databases import Copy
from tests.kafka_broker import LocalBroker

from .worker_processes import WorkerProcess, local, variables, worker_process
from .working import Floor, floor

pytestmark = pytest.mark.integration
LOOK_SECONDS = 5.0
"""How often a worker looks that nothing wakes."""
HEARD = "aiagent_stream_events_total"


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    made = LocalBroker(free_port())
    await made.start()
    yield made
    made.kill()


@asynccontextmanager
async def making(database: Database, broker: Broker) -> AsyncIterator[Floor]:
    """A process that makes runs and carries none: this one."""
    async with AsyncExitStack() as stack:
        it = await stack.enter_async_context(floor(database))
        relay = relay_to(broker, database, SystemClock())
        assert relay is not None
        task = asyncio.create_task(relay.run())
        try:
            yield it
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(
    condition: Callable[[], Awaitable[bool]], *, pause: float = 0.02, seconds: float = 40
) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(pause)


async def running(it: Floor, run: ShownRun) -> ShownRun:
    return await it.until(run, lambda found: found.run.state is RunState.RUNNING)


async def hears(it: Floor, *workers: WorkerProcess, seconds: float = 40) -> None:
    """Makes runs until each of the workers has heard of one."""

    async def told() -> list[float]:
        return [await worker.told(HEARD) for worker in workers]

    before = await told()

    async def heard() -> bool:
        await it.run(prompt_template="stay")
        return all(now > then for now, then in zip(await told(), before, strict=True))

    await until(heard, pause=0.25, seconds=seconds)


async def begins_at_once(it: Floor) -> None:
    """Makes five runs, one after the other: found by looking only, they would take four looks."""
    async with asyncio.timeout(3 * LOOK_SECONDS):
        for _ in range(5):
            await running(it, await it.run(prompt_template="stay"))


async def test_a_run_is_begun_by_another_process_and_again_when_the_broker_was_killed(
    databases: Copy, scheduler_database: Database, broker: LocalBroker, tmp_path: Path
) -> None:
    environment = variables(databases, {**local(broker.broker), "AIAGENT_SCHEDULER_WORKER_PLACES": "1000"})
    async with (
        making(scheduler_database, broker.broker) as it,
        worker_process(environment, tmp_path) as worker,
    ):
        await worker.ready()
        await hears(it, worker)
        await begins_at_once(it)
        broker.kill()
        lonely = await it.run(prompt_template="stay")
        await broker.start()
        await hears(it, worker)
        await begins_at_once(it)
        await running(it, lonely)


async def test_a_killed_process_is_followed_by_another_and_one_that_is_asked_gives_back(
    databases: Copy, scheduler_database: Database, broker: LocalBroker, tmp_path: Path
) -> None:
    environment = variables(databases, local(broker.broker))

    async def row(run: ShownRun) -> Any:
        async with scheduler_database.system() as connection:
            query = sa.select(runs, (runs.c.lease_expire_time <= sa.func.clock_timestamp()).label("free"))
            return (await connection.execute(query.where(runs.c.id == run.run.id))).one()

    async with making(scheduler_database, broker.broker) as it, worker_process(environment, tmp_path) as one:
        await one.ready()
        run = await it.run(a_caller(), prompt_template="stay")
        await running(it, run)
        async with worker_process(environment, tmp_path) as two:
            await two.ready()
            first = await row(run)
            assert await one.end(kill=True) == -9
            await it.expire(run)
            await hears(it, two)

            async def taken() -> bool:
                return bool((await row(run)).epoch == 2)

            await until(taken)
            second = await row(run)
            assert (second.state, second.attempt) == ("RUNNING", 1)
            assert second.lease_holder != first.lease_holder
            assert await two.told("aiagent_task_runs_under_way") >= 1
            assert await two.end() == 0
            assert (await row(run)).free


async def test_without_its_database_it_waits_and_is_not_ready(databases: Copy, tmp_path: Path) -> None:
    nowhere = "postgresql://somebody:hush@127.0.0.1:9/nothing"
    urls = ("AIAGENT_SCHEDULER_DATABASE_URL", "AIAGENT_SCHEDULER_SYSTEM_DATABASE_URL")
    async with worker_process(variables(databases, dict.fromkeys(urls, nowhere)), tmp_path) as worker:
        assert (await worker.asked("/ready"))[0] == 503
        assert "aiagent_task_runs_oldest_queued_seconds" in (await worker.asked("/metrics"))[1]
        assert worker.process.returncode is None
        assert await worker.end() == 0


async def test_a_worker_without_places_says_so_and_ends(databases: Copy, tmp_path: Path) -> None:
    environment = variables(databases, {"AIAGENT_SCHEDULER_WORKER_PLACES": "0"})
    async with worker_process(environment, tmp_path) as worker:
        assert await worker.process.wait() == 1
    assert "error: AIAGENT_SCHEDULER_WORKER_PLACES is 0" in (tmp_path / "worker.log").read_text()
