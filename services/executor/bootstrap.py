"""Composes the executor."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc
import structlog

from aiagent.executor.v1.executor_service_pb2_grpc import add_ExecutorServiceServicer_to_server
from aiagent.session.v1 import transcript_service_pb2
from services.executor.api.servicer import POLICIES, ExecutorServicer
from services.executor.domain.errors import DOMAIN
from services.executor.gateways import isolation, offline_model
from services.executor.gateways.agent_process import Bounds
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.gateways.registration import Registration
from services.executor.gateways.transcripts import TranscriptClient
from services.executor.settings import ExecutorSettings
from services.executor.usecases.turns import Turns
from services.kernel.clock import SystemClock
from services.kernel.context import detached
from services.kernel.grpc import KernelServer, build_server, open_channel, replicas
from services.kernel.identity import ServiceTokenSigner, ServiceTokenVerifier
from services.kernel.ids import new_id
from services.kernel.redis import open_redis
from services.kernel.settings import targets
from services.kernel.supervision import supervise

_log = structlog.get_logger(__name__)


class ExecutorService:
    """The executor: start, drain, stop."""

    name = "executor"

    def __init__(
        self,
        server: KernelServer,
        turns: Turns,
        agents: ClaudeAgents,
        gateway: ModelGateway,
        channel: grpc.aio.Channel,
        registration: Registration | None,
    ) -> None:
        """Use `build`."""
        self._server = server
        self._turns = turns
        self._agents = agents
        self._gateway = gateway
        self._channel = channel
        self._registration = registration
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Ends what a killed predecessor left, then serves."""
        orphans = await asyncio.to_thread(self._agents.sweep)
        if orphans:
            _log.warning("agents of a killed executor were ended", count=orphans)
        await self._gateway.start()
        loops = {"turns": self._turns.watch}
        await self._server.start()
        if self._registration is not None:
            loops["registration"] = self._registration.keep
        self._loops = [
            asyncio.create_task(supervise(name, loop, SystemClock()), context=detached())
            for name, loop in loops.items()
        ]

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more turns; those that run get half of the time to end, and go on at the next start otherwise."""
        await self._withdraw()
        await self._turns.drain(grace_seconds / 2)
        await self._server.drain_calls(grace_seconds / 2)

    async def _withdraw(self) -> None:
        """Is not to be found any more; those who hold attempts here know the address."""
        registration, self._registration = self._registration, None
        if registration is not None:
            if len(self._loops) > 1:
                keeping = self._loops.pop()
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            await registration.withdraw()

    async def stop(self) -> None:
        """Ends all agents and closes everything."""
        await self._withdraw()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._turns.stop()
        await self._server.stop()
        await self._gateway.stop()
        await self._channel.close()


async def build(settings: ExecutorSettings) -> ExecutorService:
    """Composes the executor.

    Args:
        settings: Its settings.

    Raises:
        ServiceError: FAILED_PRECONDITION with ISOLATION_UNAVAILABLE.
    """
    key = settings.anthropic_api_key.get_secret_value()
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = settings.state_dir.resolve() / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    offline = not key
    chosen = await asyncio.to_thread(
        isolation.choose,
        settings.isolation,
        settings.state_dir,
        tuple(filter(None, settings.sandbox_read_only_paths.split(":"))),
        settings.agent_max_processes,
        settings.agent_memory_mib << 20,
    )
    if chosen.unprotected():
        _log.warning("isolation is weak", isolation=chosen.kind, unprotected=chosen.unprotected())
    gateway = ModelGateway(
        run / f"{settings.executor_id}.sock",
        base_url=settings.anthropic_base_url,
        api_key=key,
        offline=offline_model.answer if offline else None,
    )
    channel = open_channel(
        replicas(targets(settings.session_targets)),
        signer=ServiceTokenSigner("executor", settings.private_key()),
        audience="session",
        balanced=True,
        # An entry of a transcript that is there is dropped; the rest only reads.
        repeatable=[transcript_service_pb2.DESCRIPTOR.services_by_name["TranscriptService"].full_name],
    )
    agents = ClaudeAgents(
        # Homes are one executor's own: several may share a state directory, and each ends what it finds in its own.
        settings.state_dir / "executors" / settings.executor_id,
        settings.workspace_root,
        chosen,
        gateway,
        TranscriptClient(channel),
        offline_model=offline,
        hook_timeout_seconds=settings.decision_hold_seconds,
        bounds=Bounds(settings.agent_memory_mib << 20, settings.min_free_disk_mib << 20),
    )
    incarnation = new_id()
    turns = Turns(
        agents,
        incarnation=incarnation,
        clock=SystemClock(),
        max_live_clients=settings.executor_max_live_clients,
        idle_seconds=settings.executor_idle_seconds,
    )
    servicer = ExecutorServicer(
        turns, settings.executor_id, offline_model=offline, isolation=agents.isolation
    )
    server = build_server(
        listen=settings.executor_listen,
        domain=DOMAIN,
        register=[partial(add_ExecutorServiceServicer_to_server, servicer)],
        policies=POLICIES,
        services=ServiceTokenVerifier(settings.trusted_keys(), "executor"),
        reflect=False,
    )
    registration = None
    if settings.redis_url is not None:
        redis = open_redis(settings.redis_url.get_secret_value(), max_connections=2)
        target = settings.executor_target or settings.executor_listen
        registration = Registration(redis, settings.executor_id, target, incarnation, SystemClock())
    return ExecutorService(server, turns, agents, gateway, channel, registration)
