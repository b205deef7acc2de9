"""Composes the scheduler service."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog

from aiagent.scheduler.v1 import scheduler_service_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from services.kernel.clock import Clock, SystemClock
from services.kernel.context import detached
from services.kernel.db import Database
from services.kernel.errors import ServiceError
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
from services.kernel.readiness import once_reached, watch_database
from services.kernel.settings import targets
from services.kernel.supervision import supervise
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.domain.errors import DOMAIN
from services.scheduler.gateways.auth import auth_channel, key_set
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.notes import CHANNEL, SCHEDULES_CHANGED
from services.scheduler.store.system_queries import FireQueries, HouseKeeping, RunQueries
from services.scheduler.store.tables import SCHEMA
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.firing import SchedulePrompts, Ticker
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.worker import RunWorker

_log = structlog.get_logger(__name__)
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
        firing: Firing,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._house = house
        self._channels = channels
        self._templates = templates
        self._worker = worker
        self._firing = firing
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
        await self._server.start()
        await self._worker.start()
        for name, work in (
            ("scheduler-housekeeping", keep_house(self._house.purge, clock)),
            *self._firing.work(clock),
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
        await asyncio.gather(*(channel.close() for channel in self._channels), self._templates.close())
        await self._database.close()


class Firing:
    """What makes the fires of schedules: the tick, the prompts, and what wakes them."""

    def __init__(self, database: Database, renderer: TemplateProcesses, clock: Clock) -> None:
        """Args: database: the scheduler schema; renderer: renders prompts; clock: for waiting."""
        queries = FireQueries(database)
        self._database = database
        self._ticker = Ticker(queries, Uuid7Source(), clock)
        self._prompts = SchedulePrompts(queries, renderer, clock, self._ticker.wake)
        database.on_commit(SCHEDULES_CHANGED, self.wake)

    def wake(self) -> None:
        """Says that schedules have changed."""
        self._prompts.wake()
        self._ticker.wake()

    def work(self, clock: Clock) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """The loops, by name."""
        return [
            ("schedule-tick", supervise("schedule-tick", self._ticker.run, clock)),
            ("schedule-prompts", supervise("schedule-prompts", self._prompts.run, clock)),
            ("schedule-changes", supervise("schedule-changes", partial(self._listen, clock), clock)),
        ]

    async def _listen(self, clock: Clock) -> None:
        while True:
            try:
                await self._database.listen(CHANNEL, self.wake)
            except ServiceError as error:
                _log.info("changes of schedules are not heard", reason=error.reason)
            await clock.sleep(1.0)


async def build(settings: SchedulerSettings) -> SchedulerService:
    """Composes the scheduler service.

    Args:
        settings: Its settings.
    """
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
        clock=SystemClock(),
        places=settings.scheduler_worker_places,
    )
    servicer = SchedulerServicer(
        Tasks(store, ids, templates), Schedules(store, ids, templates), Runs(store, ids, templates, worker)
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
    firing = Firing(database, templates, SystemClock())
    return SchedulerService(
        server, database, HouseKeeping(database), [auth, session], templates, worker, firing
    )


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
