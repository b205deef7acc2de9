"""Composes the scheduler service."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path

import grpc

from aiagent.scheduler.v1 import scheduler_service_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from services.kernel.clock import SystemClock
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
from services.kernel.lifecycle import Drain
from services.kernel.readiness import once_reached, watch_database
from services.kernel.settings import targets
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.domain.errors import DOMAIN
from services.scheduler.gateways.auth import auth_channel, key_set
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.system_queries import HouseKeeping, RunQueries, WatchQueries
from services.scheduler.store.tables import SCHEMA
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.backfills import Backfills
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.watching import RunLooks, Watching
from services.scheduler.usecases.worker import RunWorker

_MIGRATIONS = Path(__file__).with_name("migrations")
_SERVICE = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]
POLICIES: dict[str, MethodPolicy] = {
    f"/{_SERVICE.full_name}/{method.name}": USER for method in _SERVICE.methods
}


class SchedulerService:
    """The scheduler service: start, drain, stop."""

    name = "scheduler"

    def __init__(
        self,
        server: KernelServer,
        database: Database,
        house: HouseKeeping,
        channels: list[grpc.aio.Channel],
        templates: TemplateProcesses,
        worker: RunWorker,
        looks: RunLooks,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._house = house
        self._channels = channels
        self._templates = templates
        self._worker = worker
        self._looks = looks
        self._tasks: list[asyncio.Task[None]] = []

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
        await self._looks.start()
        await self._server.start()
        await self._worker.start()
        for name, work in (
            ("scheduler-housekeeping", keep_house(self._house.purge, clock)),
            ("scheduler-readiness", watch_database(self._database.check, self._server.health, clock)),
        ):
            self._tasks.append(asyncio.create_task(work, name=name, context=detached()))

    async def drain(self, grace_seconds: float) -> None:
        """Lets calls end, and gives runs back for another worker, or the next start, to go on with."""
        await asyncio.gather(self._server.drain_calls(grace_seconds), self._worker.drain())

    async def stop(self) -> None:
        """Closes everything."""
        await self._worker.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        await self._looks.stop()
        await asyncio.gather(*(channel.close() for channel in self._channels), self._templates.close())
        await self._database.close()


async def build(settings: SchedulerSettings) -> SchedulerService:
    """Composes the scheduler service.

    Args:
        settings: Its settings.
    """
    clock, drain = SystemClock(), Drain()
    database = Database(
        settings.scheduler_database_url.get_secret_value(),
        settings.scheduler_system_database_url.get_secret_value(),
        application_name="aiagent/scheduler",
    )
    auth = auth_channel(settings.auth_targets)
    store, ids, templates = TenantStore(database), Uuid7Source(), TemplateProcesses()
    session = open_channel(
        replicas(targets(settings.session_targets)),
        signer=ServiceTokenSigner("scheduler", settings.private_key()),
        audience="session",
        forward_caller=True,
        balanced=True,
    )
    worker = RunWorker(
        RunQueries(database),
        SessionGateway(session),
        holder=str(new_id()),
        clock=clock,
        places=settings.scheduler_worker_places,
    )
    looks = RunLooks(WatchQueries(database).versions, drain, clock)
    database.on_commit(RUNS_CHANGED, looks.wake)
    servicer = SchedulerServicer(
        Tasks(store, ids, templates),
        Schedules(store, ids),
        Backfills(store, ids),
        Runs(store, ids, templates, worker),
        Watching(store, looks, clock),
    )
    days = settings.scheduler_run_retention_days
    house = HouseKeeping(database, keep_runs=timedelta(days=days) if days else None)
    server = build_server(
        listen=settings.scheduler_listen,
        domain=DOMAIN,
        register=[partial(add_SchedulerServiceServicer_to_server, servicer)],
        policies=POLICIES,
        users=JwksVerifier(key_set(auth)),
        services=ServiceTokenVerifier(settings.trusted_keys(), "scheduler"),
        reflect=settings.reflection,
        drain=drain,
    )
    return SchedulerService(server, database, house, [auth, session], templates, worker, looks)


async def migrate(settings: SchedulerSettings) -> str:
    """Brings the schema up to date; returns a line that says what it is then.

    Raises:
        ValueError: the owner's database URL is not set.
    """
    url = settings.scheduler_owner_database_url
    if url is None:
        raise ValueError("AIAGENT_SCHEDULER_OWNER_DATABASE_URL is not set")
    # Not for services that serve: importing Alembic takes a tenth of their start.
    from services.kernel.db.migrations import upgrade

    return f"schema {SCHEMA} is at {await upgrade(url.get_secret_value(), SCHEMA, _MIGRATIONS)}"
