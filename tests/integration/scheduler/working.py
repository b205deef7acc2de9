"""Workers on a real database, with sessions that are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.identity import Caller
from services.kernel.identity.keys import base64url_encode
from services.kernel.ids import Uuid7Source
from services.kernel.sealing import KeyRing
from services.kernel.testing import a_caller
from services.scheduler.domain.entities import TaskContent
from services.scheduler.domain.receivers import AddressRules
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import Claim, LeaseLost, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.store.system_queries import RunQueries
from services.scheduler.store.tables import runs
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.ports import ShownRun
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.webhooks import WebhookKeeper
from services.scheduler.usecases.webhooks.deliveries import Webhooks
from services.scheduler.usecases.worker import RunWorker
from services.scheduler.usecases.worker.ports import NOT_YET, Progress

from .fake_sessions import FakeSessions

KEYS = KeyRing(base64url_encode(b"k" * 32), service="scheduler")
KEEPER = WebhookKeeper(AddressRules([ip_network("127.0.0.0/8")]), KEYS.sealer())
AT_ONCE = RetryPolicy(maximum_attempts=3, initial_interval=timedelta(), maximum_interval=timedelta())
_CONTENT = TaskContent(
    name="a task",
    prompt_template="greet",
    variables=(),
    sdk_options={"permission_mode": "DONT_ASK"},
    labels={"team": "core"},
    priority=0,
    run_timeout=timedelta(minutes=1),
    retry_policy=AT_ONCE,
    max_concurrent_runs=0,
    run_budget_usd=0.0,
)


def content(**changes: Any) -> TaskContent:
    """What a task says: greet, unless told otherwise."""
    values: Mapping[str, Any] = {name: getattr(_CONTENT, name) for name in TaskContent.__dataclass_fields__}
    return TaskContent(**{**values, **changes})


class Queue(RunQueries):
    """The runs as workers see them, one by one."""

    async def take(self, holder: str, limit: int) -> list[Claim]:
        """Claims runs."""
        return (await self.claim(holder, limit)).runs

    async def tell(self, claim: Claim, **known: Any) -> RunState:
        """Records a step of one run, as soon as nobody else has it locked; returns its state. Raises LeaseLost."""
        while (state := (await self.record([Progress(claim, **known)]))[0]) is NOT_YET:
            await asyncio.sleep(0.01)
        if state is None:
            raise LeaseLost
        return state

    async def end(self, claim: Claim, outcome: Outcome, pause: timedelta | None) -> RunState:
        """Records how an attempt ended. Raises LeaseLost."""
        return await self.tell(claim, outcome=outcome, pause=pause)


@dataclass
class Floor:
    """Where workers work."""

    database: Database
    sessions: FakeSessions = field(default_factory=FakeSessions)
    workers: list[RunWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        store, self.renderer = TenantStore(self.database), TemplateProcesses()
        self.keeper = KEEPER
        self.tasks = Tasks(store, Uuid7Source(), self.renderer, self.keeper)
        self.webhooks = Webhooks(store, Uuid7Source(), self.keeper)
        self.runs = Runs(store, Uuid7Source(), self.renderer, self)

    def wake(self) -> None:
        """Wakes every worker."""
        for worker in self.workers:
            worker.wake()

    def queue(self, *, lease_seconds: float = 5.0, per_user: int = 0) -> Queue:
        """The runs as workers see them."""
        return Queue(self.database, lease_life=timedelta(seconds=lease_seconds), per_user=per_user)

    async def worker(
        self, places: int = 4, *, lease_seconds: float = 5.0, queue: Queue | None = None, **options: Any
    ) -> RunWorker:
        """Starts a worker, which looks often."""
        worker = RunWorker(
            queue or self.queue(lease_seconds=lease_seconds),
            self.sessions,
            holder=str(uuid4()),
            clock=SystemClock(),
            places=places,
            **{"look_seconds": 0.05, "renew_seconds": 0.05, **options},
        )
        await worker.start()
        self.workers.append(worker)
        return worker

    async def crash(self, worker: RunWorker) -> None:
        """Lets a worker end where it stands, as a process does that is killed: nothing is given back."""
        self.workers.remove(worker)
        tasks = [*worker._loops, *worker._tasks.values()]
        if worker._recorder._writing is not None:
            tasks.append(worker._recorder._writing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def task(self, caller: Caller, **changes: Any) -> UUID:
        """Makes a task."""
        return (await self.tasks.create(caller, content(**changes), "")).id

    async def run(
        self, caller: Caller | None = None, task_id: UUID | None = None, **changes: Any
    ) -> ShownRun:
        """Runs a task, a new one of somebody new by default."""
        caller = caller or a_caller()
        return await self.runs.run(caller, task_id or await self.task(caller, **changes), {}, "")

    async def read(self, run: ShownRun) -> ShownRun:
        """Reads a run."""
        return await self.runs.get(owner(run), run.run.id)

    async def until(self, run: ShownRun, holds: Callable[[ShownRun], bool]) -> ShownRun:
        """Reads a run until something holds of it."""
        async with asyncio.timeout(20):
            # The database tells nobody when it changes.
            while not holds(found := await self.read(run)):
                await asyncio.sleep(0.01)
            return found

    async def ended(self, run: ShownRun) -> ShownRun:
        """Waits for the end of a run."""
        return await self.until(run, lambda found: found.run.state.final)

    async def begun(self, run: ShownRun) -> ShownRun:
        """Waits until a run's turn is recorded."""
        return await self.until(run, lambda found: bool(found.attempts and found.attempts[-1].turn_id))

    async def change(self, run: ShownRun, **values: Any) -> None:
        """Changes a row behind everybody's back."""
        async with self.database.system() as connection:
            await connection.execute(sa.update(runs).where(runs.c.id == run.run.id).values(**values))

    async def expire(self, run: ShownRun) -> None:
        """Lets the lease of a run run out."""
        await self.change(run, lease_expire_time=sa.func.clock_timestamp() - timedelta(seconds=1))


def owner(run: ShownRun) -> Caller:
    """The owner of a run."""
    return a_caller(user_id=run.run.user_id, organization_id=run.run.organization_id)


@asynccontextmanager
async def floor(database: Database) -> AsyncIterator[Floor]:
    """An empty floor."""
    async with database.system() as connection:
        await connection.execute(sa.delete(runs))
    made = Floor(database)
    yield made
    for worker in made.workers:
        await worker.drain()
    await made.renderer.close()


def states(run: ShownRun) -> list[RunState]:
    """The states of the attempts."""
    return [attempt.state for attempt in run.attempts]
