"""Composes what serves, fires, and may carry runs too."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

import grpc

from aiagent.auth.v1 import auth_service_pb2
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from aiagent.scheduler.v1 import scheduler_service_pb2, webhook_service_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from aiagent.scheduler.v1.webhook_service_pb2_grpc import add_WebhookServiceServicer_to_server
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.grpc import USER, KernelServer, MethodPolicy, auth_channel, build_server, key_set
from services.kernel.housekeeping import keep_house
from services.kernel.identity import JwksVerifier, ServiceTokenVerifier
from services.kernel.ids import Uuid7Source
from services.kernel.lifecycle import Drain
from services.kernel.readiness import once_reached, watch_database
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.api.webhooks import WebhookServicer
from services.scheduler.bootstrap.background import Background
from services.scheduler.bootstrap.carrying import Carrier, compose_carrier, open_database
from services.scheduler.bootstrap.firing import Firing
from services.scheduler.domain.errors import DOMAIN
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.system_queries import HouseKeeping, WatchQueries
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.backfills import Backfills
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.watching import RunLooks, Watching
from services.scheduler.usecases.webhooks.deliveries import Webhooks

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
        auth: grpc.aio.Channel,
        templates: TemplateProcesses,
        carrier: Carrier,
        firing: Firing,
        looks: RunLooks,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._house = house
        self._auth = auth
        self._templates = templates
        self._carrier = carrier
        self._firing = firing
        self._looks = looks
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
        await self._looks.start()
        await self._server.start()
        await self._carrier.start()
        self._firing.begin(self._background)
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
        await self._looks.stop()
        await asyncio.gather(self._auth.close(), self._templates.close())
        await self._database.close()


async def build(settings: SchedulerSettings) -> SchedulerService:
    """Composes the scheduler service.

    Args:
        settings: Its settings.
    """
    clock, drain = SystemClock(), Drain()
    database = open_database(settings)
    jwks = auth_service_pb2.GetJwksRequest()
    auth = auth_channel(settings.auth_targets, jwks)
    store, ids, templates = TenantStore(database), Uuid7Source(), TemplateProcesses()
    carrier = compose_carrier(settings, database)
    looks = RunLooks(WatchQueries(database).versions, drain, clock)
    database.on_commit(RUNS_CHANGED, looks.wake)
    servicer = SchedulerServicer(
        Tasks(store, ids, templates, carrier.webhooks),
        Schedules(store, ids, templates, most_of_user=settings.scheduler_max_schedules_per_user),
        Backfills(store, ids),
        Runs(store, ids, templates, carrier.worker),
        Watching(store, looks, clock),
    )
    days = settings.scheduler_run_retention_days
    house = HouseKeeping(database, keep_runs=timedelta(days=days) if days else None)
    server = build_server(
        listen=settings.scheduler_listen,
        domain=DOMAIN,
        register=[
            partial(add_SchedulerServiceServicer_to_server, servicer),
            partial(
                add_WebhookServiceServicer_to_server, WebhookServicer(Webhooks(store, ids, carrier.webhooks))
            ),
        ],
        policies=POLICIES,
        users=JwksVerifier(key_set(AuthServiceStub(auth).GetJwks, jwks)),
        services=ServiceTokenVerifier(settings.trusted_keys(), "scheduler"),
        reflect=settings.reflection,
        drain=drain,
    )
    firing = Firing(database, templates, clock)
    return SchedulerService(server, database, house, auth, templates, carrier, firing, looks)
