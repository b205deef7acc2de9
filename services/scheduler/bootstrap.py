"""Composes the scheduler service."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import grpc

from aiagent.scheduler.v1 import scheduler_service_pb2, webhook_service_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from aiagent.scheduler.v1.webhook_service_pb2_grpc import add_WebhookServiceServicer_to_server
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
from services.kernel.readiness import once_reached, watch_database
from services.kernel.sealing import KeyRing
from services.kernel.settings import targets
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.api.webhooks import WebhookServicer
from services.scheduler.domain.errors import DOMAIN
from services.scheduler.domain.receivers import AddressRules
from services.scheduler.gateways.auth import auth_channel, key_set
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.gateways.webhooks import WebhookPost
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.system_queries import HouseKeeping, RunQueries, WebhookQueries
from services.scheduler.store.tables import SCHEMA
from services.scheduler.store.tenant import TenantStore
from services.scheduler.store.webhooks import WEBHOOKS
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.webhook_sender import WebhookSender
from services.scheduler.usecases.webhooks import WebhookKeeper, Webhooks
from services.scheduler.usecases.worker import RunWorker

_MIGRATIONS = Path(__file__).with_name("migrations")
POLICIES: dict[str, MethodPolicy] = {
    f"/{service.full_name}/{method.name}": USER
    for file in (scheduler_service_pb2.DESCRIPTOR, webhook_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
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
        sender: WebhookSender,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._house = house
        self._channels = channels
        self._templates = templates
        self._worker = worker
        self._sender = sender
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
        await self._sender.start()
        for name, work in (
            ("scheduler-housekeeping", keep_house(self._house.purge, clock)),
            ("scheduler-readiness", watch_database(self._database.check, self._server.health, clock)),
        ):
            self._tasks.append(asyncio.create_task(work, name=name, context=detached()))

    async def drain(self, grace_seconds: float) -> None:
        """Lets calls end, and gives runs back for another worker, or the next start, to go on with."""
        await asyncio.gather(
            self._server.drain_calls(grace_seconds), self._worker.drain(), self._sender.drain()
        )

    async def stop(self) -> None:
        """Closes everything."""
        await asyncio.gather(self._worker.drain(), self._sender.drain())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        await asyncio.gather(*(channel.close() for channel in self._channels), self._templates.close())
        await self._database.close()


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
    rules = AddressRules(settings.scheduler_webhook_allowed_networks)
    keys = KeyRing(settings.scheduler_encryption_key.get_secret_value(), service="scheduler")
    keeper = WebhookKeeper(rules, keys.sealer())
    sender = WebhookSender(
        WebhookQueries(database),
        WebhookPost(rules, places=settings.scheduler_webhook_places),
        keeper,
        holder=str(new_id()),
        clock=SystemClock(),
        places=settings.scheduler_webhook_places,
    )
    database.on_commit(WEBHOOKS, sender.wake)
    servicer = SchedulerServicer(
        Tasks(store, ids, templates, keeper), Schedules(store, ids), Runs(store, ids, templates, worker)
    )
    server = build_server(
        listen=settings.scheduler_listen,
        domain=DOMAIN,
        register=[
            partial(add_SchedulerServiceServicer_to_server, servicer),
            partial(add_WebhookServiceServicer_to_server, WebhookServicer(Webhooks(store, ids, keeper))),
        ],
        policies=POLICIES,
        users=JwksVerifier(key_set(auth)),
        services=ServiceTokenVerifier(settings.trusted_keys(), "scheduler"),
        reflect=settings.reflection,
    )
    return SchedulerService(
        server, database, HouseKeeping(database), [auth, session], templates, worker, sender
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
