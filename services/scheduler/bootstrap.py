"""Composes the scheduler service: what serves, and what only carries runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from aiagent.scheduler.v1 import scheduler_service_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from services.kernel.clock import Clock, SystemClock
from services.kernel.context import detached
from services.kernel.db import Database
from services.kernel.grpc import (
    USER,
    KernelServer,
    MethodPolicy,
    build_server,
    open_channel,
    replicas,
)
from services.kernel.housekeeping import keep_house
from services.kernel.identity import JwksVerifier, ServiceTokenSigner, ServiceTokenVerifier
from services.kernel.ids import Uuid7Source, new_id
from services.kernel.kafka.settings import Broker
from services.kernel.readiness import Readiness, once_reached, watch_database
from services.kernel.settings import targets
from services.kernel.supervision import repeat, supervise
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.domain.errors import DOMAIN
from services.scheduler.gateways.auth import auth_channel, key_set
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.facts import OUTBOX, RUNS_QUEUED, TASK_RUNS
from services.scheduler.store.system_queries import HouseKeeping, RunQueries, WaitingQueries
from services.scheduler.store.tables import SCHEMA
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.watchdog import MEASURE_SECONDS, SILENT_SECONDS, QueueWatch
from services.scheduler.usecases.worker import RunWorker

if TYPE_CHECKING:
    from services.kernel.kafka.consumer import StreamConsumer
    from services.kernel.kafka.relay import OutboxRelay

_MIGRATIONS = Path(__file__).with_name("migrations")
_SERVICE = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]
POLICIES: dict[str, MethodPolicy] = {
    f"/{_SERVICE.full_name}/{method.name}": USER for method in _SERVICE.methods
}


class Background:
    """Work beside what a process is for: begun together, ended together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begins work that ends when it is cancelled."""
        self._tasks.append(asyncio.create_task(work, name=f"scheduler-{name}", context=detached()))

    async def end(self) -> None:
        """Ends all of it."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Carrier:
    """The runs of a process: its worker, what wakes it, and what publishes whatever the process tells of runs."""

    def __init__(
        self,
        worker: RunWorker,
        watch: QueueWatch,
        relay: OutboxRelay | None,
        consumer: StreamConsumer | None,
        session: grpc.aio.Channel,
    ) -> None:
        """Use `compose_carrier`."""
        self.worker = worker
        self.publishes = relay is not None
        self._watch = watch
        self._relay = relay
        self._consumer = consumer
        self._session = session
        self._hearing, self._background = Background(), Background()

    async def start(self) -> None:
        """Carries runs from now on; the database is there. The broker need not be."""
        clock = SystemClock()
        await self.worker.start()
        self._background.begin("queue-age", repeat("queue-age", self._watch.step, clock, MEASURE_SECONDS))
        if self._relay is not None:
            self._background.begin("relay", supervise("relay", self._relay.run, clock))
        if self._consumer is not None:
            self._hearing.begin("consumer", supervise("runs-consumer", self._consumer.run, clock))

    async def drain(self) -> None:
        """Gives runs back for another worker, or the next start, to go on with."""
        await asyncio.gather(self.worker.drain(), self._hearing.end())

    async def stop(self) -> None:
        """Closes everything."""
        await self.drain()
        await self._background.end()
        await self._session.close()


class SchedulerService:
    """The scheduler service: start, drain, stop."""

    name = "scheduler"

    def __init__(
        self,
        server: KernelServer,
        database: Database,
        house: HouseKeeping,
        auth: grpc.aio.Channel,
        templates: TemplateProcesses,
        carrier: Carrier,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._house = house
        self._auth = auth
        self._templates = templates
        self._carrier = carrier
        self._background = Background()

    @property
    def port(self) -> int:
        """The port it serves on, once started."""
        return self._server.port

    async def start(self) -> None:
        """Serves once its database is there.

        Raises:
            OSError: the port is in use.
        """
        clock = SystemClock()
        await self._server.open()
        await once_reached(self._database.check, clock)
        await self._server.start()
        await self._carrier.start()
        self._background.begin("housekeeping", keep_house(self._purge, clock))
        self._background.begin("readiness", watch_database(self._database.check, self._server.health, clock))

    async def _purge(self) -> int:
        # Without a relay facts are kept for a while, for a broker that may be set up yet.
        facts = await self._house.purge_facts(unwanted=not self._carrier.publishes)
        return facts + await self._house.purge()

    async def drain(self, grace_seconds: float) -> None:
        """Lets calls end, and gives runs back for another worker, or the next start, to go on with."""
        await asyncio.gather(self._server.drain_calls(grace_seconds), self._carrier.drain())

    async def stop(self) -> None:
        """Closes everything."""
        await self._carrier.stop()
        await self._background.end()
        await self._server.stop()
        await asyncio.gather(self._auth.close(), self._templates.close())
        await self._database.close()


class WorkerService:
    """A process that only carries runs: no server, no calls."""

    name = "scheduler-worker"

    def __init__(self, database: Database, carrier: Carrier) -> None:
        """Use `build_worker`."""
        self._database = database
        self._carrier = carrier
        self._readiness = Readiness()
        self._background = Background()

    @property
    def ready(self) -> bool:
        """Whether it takes runs, and its database is there."""
        return self._readiness.ready

    async def start(self) -> None:
        """Carries runs once its database is there."""
        clock = SystemClock()
        await once_reached(self._database.check, clock)
        await self._carrier.start()
        await self._readiness.set_serving(True)
        self._background.begin("readiness", watch_database(self._database.check, self._readiness, clock))

    async def drain(self, grace_seconds: float) -> None:
        """Gives runs back; the agents go on in the session service, and nothing needs the grace."""
        self._readiness.shut_down()
        await self._carrier.drain()

    async def stop(self) -> None:
        """Closes everything."""
        await self._carrier.stop()
        await self._background.end()
        await self._database.close()


async def build(settings: SchedulerSettings) -> SchedulerService:
    """Composes the scheduler service.

    Args:
        settings: Its settings.
    """
    database = open_database(settings)
    auth = auth_channel(settings.auth_targets)
    store, ids, templates = TenantStore(database), Uuid7Source(), TemplateProcesses()
    carrier = compose_carrier(settings, database)
    servicer = SchedulerServicer(
        Tasks(store, ids, templates), Schedules(store, ids), Runs(store, ids, templates, carrier.worker)
    )
    server = build_server(
        listen=settings.scheduler_listen,
        domain=DOMAIN,
        register=[partial(add_SchedulerServiceServicer_to_server, servicer)],
        policies=POLICIES,
        users=JwksVerifier(key_set(auth)),
        services=ServiceTokenVerifier(settings.trusted_keys(), "scheduler"),
        reflect=settings.reflection,
    )
    return SchedulerService(server, database, HouseKeeping(database), auth, templates, carrier)


async def build_worker(settings: SchedulerSettings) -> WorkerService:
    """Composes a process that only carries runs.

    Args:
        settings: The service's.

    Raises:
        ValueError: It is to carry none.
    """
    if settings.scheduler_worker_places == 0:
        raise ValueError("AIAGENT_SCHEDULER_WORKER_PLACES is 0: a worker without places carries nothing")
    database = open_database(settings)
    return WorkerService(database, compose_carrier(settings, database))


def open_database(settings: SchedulerSettings) -> Database:
    """Opens the schema's connections."""
    return Database(
        settings.scheduler_database_url.get_secret_value(),
        settings.scheduler_system_database_url.get_secret_value(),
        application_name="aiagent/scheduler",
    )


def compose_carrier(settings: SchedulerSettings, database: Database) -> Carrier:
    """Composes what carries runs in a process.

    Args:
        settings: The service's.
        database: Whose commits wake the worker at once, where they queue runs.
    """
    session = open_channel(
        replicas(targets(settings.session_targets)),
        signer=ServiceTokenSigner("scheduler", settings.private_key()),
        audience="session",
        forward_caller=True,
        balanced=True,
    )
    clock, places = SystemClock(), settings.scheduler_worker_places
    worker = RunWorker(
        RunQueries(database), SessionGateway(session), holder=str(new_id()), clock=clock, places=places
    )
    database.on_commit(RUNS_QUEUED, worker.wake)
    watch = QueueWatch(WaitingQueries(database), lambda: worker.under_way < places)
    broker = settings.broker()
    return Carrier(
        worker,
        watch,
        relay_to(broker, database, clock),
        consumer_of(broker, worker, watch, clock) if places else None,
        session,
    )


def relay_to(broker: Broker | None, database: Database, clock: Clock) -> OutboxRelay | None:
    """Composes what publishes the service's facts; None without a broker."""
    if broker is None:
        return None
    # Not for services that publish nothing: importing the client takes time and memory.
    from services.kernel.kafka.publisher import KafkaPublisher
    from services.kernel.kafka.relay import OutboxRelay

    return OutboxRelay("scheduler", database, OUTBOX, KafkaPublisher(broker, [TASK_RUNS]), clock)


def consumer_of(
    broker: Broker | None, worker: RunWorker, watch: QueueWatch, clock: Clock
) -> StreamConsumer | None:
    """Composes what hears of runs that other processes have queued (0084); None without a broker."""
    if broker is None:
        return None
    # Faust takes half a second.
    from services.kernel.kafka.consumer import StreamConsumer
    from services.scheduler.streams.runs import GROUP, waking

    return StreamConsumer(
        GROUP,
        broker,
        {TASK_RUNS: waking(worker)},
        clock,
        broadcast=True,
        listening=worker.wake,
        work_waits=watch.work_waits,
        silent_seconds=SILENT_SECONDS,
    )


async def migrate(settings: SchedulerSettings) -> str:
    """Brings the schema up to date, and creates the topic where a broker is set; returns a line that says so.

    Raises:
        ValueError: the owner's database URL is not set.
        PublishError: the broker does not do it.
    """
    url = settings.scheduler_owner_database_url
    if url is None:
        raise ValueError("AIAGENT_SCHEDULER_OWNER_DATABASE_URL is not set")
    # Not for services that serve: importing Alembic takes a tenth of their start.
    from services.kernel.db.migrations import upgrade

    line = f"schema {SCHEMA} is at {await upgrade(url.get_secret_value(), SCHEMA, _MIGRATIONS)}"
    broker = settings.broker()
    if broker is not None:
        from services.kernel.kafka.admin import declare

        created = await declare(broker, [TASK_RUNS])
        line += f"; topic {TASK_RUNS.name} " + ("was created" if created else "is there")
    return line
