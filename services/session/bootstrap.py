"""Composes the session service."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
from redis.asyncio import Redis

from aiagent.auth.v1 import auth_service_pb2
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from aiagent.session.v1 import (
    permission_service_pb2,
    session_service_pb2,
    transcript_service_pb2,
    workspace_service_pb2,
)
from aiagent.session.v1.permission_service_pb2_grpc import add_PermissionServiceServicer_to_server
from aiagent.session.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from aiagent.session.v1.transcript_service_pb2_grpc import add_TranscriptServiceServicer_to_server
from aiagent.session.v1.workspace_service_pb2_grpc import add_WorkspaceServiceServicer_to_server
from services.kernel.clock import Clock, SystemClock
from services.kernel.context import detached
from services.kernel.db import Database
from services.kernel.grpc import (
    KernelServer,
    MethodPolicy,
    auth_channel,
    build_server,
    key_set,
    open_channel,
    services,
    user_or_services,
)
from services.kernel.housekeeping import keep_house
from services.kernel.identity import JwksVerifier, ServiceTokenSigner, ServiceTokenVerifier
from services.kernel.ids import Uuid7Source, new_id
from services.kernel.kafka.settings import Broker
from services.kernel.lifecycle import Drain
from services.kernel.migrating import bring_up_to_date
from services.kernel.readiness import once_reached, watch_database
from services.kernel.redis import open_redis
from services.kernel.settings import targets
from services.kernel.supervision import supervise
from services.session import codec
from services.session.api.permissions import PermissionServicer
from services.session.api.sessions import SessionServicer
from services.session.api.transcripts import TranscriptServicer
from services.session.api.watch import WatchApi
from services.session.api.workspaces import WorkspaceServicer
from services.session.domain.errors import DOMAIN
from services.session.gateways.attempt_tokens import AttemptTokens
from services.session.gateways.blobs import BlobStore
from services.session.gateways.executor_registry import ExecutorRegistry
from services.session.gateways.executors import ExecutorGateway
from services.session.gateways.feed_codec import event_item, gate_event
from services.session.gateways.live_feed import LiveFeed
from services.session.gateways.workspaces import Workspaces
from services.session.settings import SessionSettings
from services.session.store.facts import OUTBOX, SESSION_FACTS
from services.session.store.system_queries import DriverQueries
from services.session.store.tables import SCHEMA
from services.session.store.tenant import TenantStore
from services.session.store.transcripts import TranscriptQueries
from services.session.usecases.contents import ContentKeeper
from services.session.usecases.driver import DriverPool
from services.session.usecases.driver.runner import DriverPorts
from services.session.usecases.permissions import Permissions
from services.session.usecases.sessions import Sessions
from services.session.usecases.transcripts import Transcripts
from services.session.usecases.turns import Turns
from services.session.usecases.waiting import Waiting
from services.session.usecases.watch import Watching
from services.session.usecases.workspaces import WorkspaceUseCases

if TYPE_CHECKING:
    from services.kernel.kafka.relay import OutboxRelay

_MIGRATIONS = Path(__file__).with_name("migrations")
_FILES = (
    session_service_pb2.DESCRIPTOR,
    permission_service_pb2.DESCRIPTOR,
    workspace_service_pb2.DESCRIPTOR,
)
_TRANSCRIPTS = transcript_service_pb2.DESCRIPTOR.services_by_name["TranscriptService"]
POLICIES: dict[str, MethodPolicy] = {
    f"/{service.full_name}/{method.name}": user_or_services("scheduler", "reports")
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
} | {f"/{_TRANSCRIPTS.full_name}/{method.name}": services("executor") for method in _TRANSCRIPTS.methods}


class DriverAlarm:
    """Wakes the session's driver: here, and on other replicas."""

    def __init__(self, pool: DriverPool, feed: LiveFeed) -> None:
        """Args: pool: the drivers of this replica; feed: reaches the others."""
        self._pool = pool
        self._feed = feed

    async def wake(self, session_id: UUID) -> None:
        """Wakes it."""
        self._pool.wake(session_id)
        await self._feed.wake_driver(session_id)


class SessionService:
    """The session service: start, drain, stop."""

    name = "session"

    def __init__(
        self,
        server: KernelServer,
        database: Database,
        feed: LiveFeed,
        pool: DriverPool,
        channels: list[grpc.aio.Channel],
        executors: ExecutorGateway,
        redis: Redis | None,
        workspaces: Workspaces,
        queries: DriverQueries,
        relay: OutboxRelay | None,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._database = database
        self._feed = feed
        self._pool = pool
        self._channels = channels
        self._executors = executors
        self._redis = redis
        self._workspaces = workspaces
        self._queries = queries
        self._relay = relay
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
        await self._server.open()
        await once_reached(self._database.check, SystemClock())
        await self._workspaces.sweep()
        await self._feed.start()
        await self._pool.start()
        await self._server.start()
        clock = SystemClock()
        for name, work in (
            ("session-housekeeping", keep_house(self._purge, clock)),
            ("session-readiness", watch_database(self._database.check, self._server.health, clock)),
            *([("session-relay", supervise("relay", self._relay.run, clock))] if self._relay else ()),
        ):
            self._tasks.append(asyncio.create_task(work, name=name, context=detached()))

    async def _purge(self) -> int:
        # Without a relay facts are kept for a while, for a broker that may be set up yet.
        facts = await self._queries.purge_facts(unwanted=self._relay is None)
        return facts + await self._queries.purge_request_ids()

    async def drain(self, grace_seconds: float) -> None:
        """Ends streams with DRAINING, lets calls end, and hands the sessions over."""
        await self._server.drain_calls(grace_seconds)
        await self._pool.drain()

    async def stop(self) -> None:
        """Closes everything."""
        await self._pool.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        await self._feed.stop()
        await asyncio.gather(*(channel.close() for channel in self._channels), self._executors.close())
        if self._redis is not None:
            await self._redis.aclose()
        await self._database.close()
        self._workspaces.close()


async def build(settings: SessionSettings) -> SessionService:
    """Composes the session service.

    Args:
        settings: Its settings.
    """
    ids, clock, drain = Uuid7Source(), SystemClock(), Drain()
    database = Database(
        settings.session_database_url.get_secret_value(),
        settings.session_system_database_url.get_secret_value(),
        dedicated_pool_size=2,
        application_name="aiagent/session",
    )
    queries = DriverQueries(database)
    redis = open_redis(settings.redis_url.get_secret_value()) if settings.redis_url else None
    feed = LiveFeed(redis, queries.heads, drain)
    blobs = BlobStore(settings.blob_url)
    workspaces = Workspaces(settings.workspace_root, settings.workspace_limit_bytes)
    contents = ContentKeeper(blobs, ids)
    signer = ServiceTokenSigner("session", settings.private_key())
    tokens = AttemptTokens(settings.private_key())
    connect = partial(open_channel, signer=signer, audience="executor")
    configured = {target: connect(target) for target in targets(settings.executor_targets)}
    executors = ExecutorGateway(
        configured, tokens, registered=ExecutorRegistry(redis).targets, connect=connect
    )
    jwks = auth_service_pb2.GetJwksRequest()
    auth = auth_channel(settings.auth_targets, jwks)
    pool = DriverPool(
        DriverPorts(
            store=queries,
            executors=executors,
            feed=feed,
            contents=contents,
            ids=ids,
        ),
        holder=str(new_id()),
        clock=clock,
        workspaces=workspaces,
        blobs=blobs,
        hold_seconds=settings.session_permission_hold_seconds,
    )
    feed.on_wake(pool.wake)
    alarm = DriverAlarm(pool, feed)
    store = TenantStore(database)
    watching = Watching(
        store,
        feed,
        clock,
        contents,
        lambda event: gate_event(event_item(codec.event(event))),
        settings.session_max_watches_per_user,
    )
    workspace_cases = WorkspaceUseCases(store, workspaces, blobs, feed)
    sessions = SessionServicer(
        Sessions(store, ids, workspaces, alarm),
        Turns(store, ids, contents, feed, alarm),
        workspace_cases,
        WatchApi(watching, Waiting(store, feed, clock), settings.session_watch_unread_seconds),
    )
    server = build_server(
        listen=settings.session_listen,
        domain=DOMAIN,
        register=[
            partial(add_SessionServiceServicer_to_server, sessions),
            partial(
                add_PermissionServiceServicer_to_server,
                PermissionServicer(Permissions(store, feed, alarm)),
            ),
            partial(add_WorkspaceServiceServicer_to_server, WorkspaceServicer(workspace_cases)),
            partial(
                add_TranscriptServiceServicer_to_server,
                TranscriptServicer(Transcripts(TranscriptQueries(database), tokens)),
            ),
        ],
        policies=POLICIES,
        users=JwksVerifier(key_set(AuthServiceStub(auth).GetJwks, jwks)),
        services=ServiceTokenVerifier(settings.trusted_keys(), "session"),
        reflect=settings.reflection,
        drain=drain,
    )
    return SessionService(
        server,
        database,
        feed,
        pool,
        [*configured.values(), auth],
        executors,
        redis,
        workspaces,
        queries,
        relay_to(settings.broker(), database, clock),
    )


def relay_to(broker: Broker | None, database: Database, clock: Clock) -> OutboxRelay | None:
    """Composes what publishes the service's facts; None without a broker."""
    if broker is None:
        return None
    # Not for services that publish nothing: importing the client takes time and memory.
    from services.kernel.kafka.publisher import KafkaPublisher
    from services.kernel.kafka.relay import OutboxRelay

    return OutboxRelay("session", database, OUTBOX, KafkaPublisher(broker, [SESSION_FACTS]), clock)


async def migrate(settings: SessionSettings) -> str:
    """Brings the schema up to date, and creates the topics where a broker is set; returns a line that says so.

    Raises:
        ValueError: the owner's database URL is not set.
        PublishError: the broker does not do it.
    """
    return await bring_up_to_date(
        SCHEMA,
        settings.session_owner_database_url,
        _MIGRATIONS,
        broker=settings.broker(),
        topics=[SESSION_FACTS],
    )
