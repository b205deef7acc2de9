"""Runs the suite: servers, migrations, services, until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.envoy.config import EnvoySettings, render
from deploy.local.children import Child
from deploy.local.environment import Plan, Replica
from deploy.local.ports import port_is_free
from deploy.local.postgres import Postgres
from deploy.local.servers import Envoy, Valkey
from deploy.local.state import LocalError, StateDirectory, write_private
from services.kernel import lifecycle
from services.kernel.db.migrations import upgrade

_log = structlog.get_logger(__name__)
ROOT = Path(__file__).parents[2]
SERVICES = ("auth", "executor", "session")
"""In the order in which they start."""
MIGRATED = ("auth", "session")


@dataclass
class Options:
    """How the suite is to run.

    Attributes:
        state_dir: Where everything is kept.
        host, port: Of the public port.
        processes: One process for each replica, instead of one for all services.
        counts: Replicas of each service; more than one needs `processes`.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    processes: bool = False
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SERVICES, 1))


class Progress:
    """Tells a person what is going on, with the time it took."""

    def __init__(self) -> None:
        self._begun = self._step = time.monotonic()

    def done(self, what: str) -> None:
        """One more step is done."""
        now = time.monotonic()
        print(f"  {what:<44} {now - self._step:5.1f} s", flush=True)
        self._step = now

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun


class Suite:
    """One local suite, from its start to its end."""

    def __init__(self, options: Options) -> None:
        """Args: options: how it is to run."""
        self.options = options
        self.state = StateDirectory(options.state_dir)
        self._stack: list[Any] = []

    async def run(self) -> None:
        """Starts everything, says so, and stays up until SIGTERM or SIGINT.

        Raises:
            LocalError: Something a person has to mend.
        """
        if not port_is_free(self.options.host, self.options.port):
            raise LocalError(
                f"port {self.options.port} of {self.options.host} is in use; set AIAGENT_HTTP_PORT to another"
            )
        self.state.open()
        progress = Progress()
        print("AI-Agent-API starts", flush=True)
        try:
            plan = await self._servers(progress)
            if self.options.processes:
                await self._in_processes(plan, progress)
            else:
                await self._in_this_process(plan, progress)
        finally:
            for server in reversed(self._stack):
                await server.stop()

    async def _servers(self, progress: Progress) -> Plan:
        secrets = self.state.secrets()
        postgres, valkey = Postgres(self.state, secrets), Valkey(self.state, secrets)
        self._stack += [postgres, valkey]
        async with asyncio.TaskGroup() as group:
            group.create_task(postgres.start())
            group.create_task(valkey.start())
        await postgres.provision()
        progress.done("PostgreSQL and Valkey")
        urls = {role: postgres.url(role) for role in secrets.database_roles}
        for schema in MIGRATED:
            await upgrade(urls[f"{schema}_owner"], schema, ROOT / "services" / schema / "migrations")
        progress.done("migrations")
        plan = Plan(self.state.path.resolve(), secrets, urls, valkey.url, self.options.counts)
        configuration = self.state.path / "run" / "envoy.json"
        write_private(
            configuration,
            render(
                EnvoySettings(
                    host=self.options.host,
                    port=self.options.port,
                    endpoints={name: plan.targets(name) for name in ("auth", "session")},
                    admin_socket=_short(self.state.path / "run" / "envoy.sock"),
                )
            ),
        )
        self._envoy = Envoy(self.state, configuration, self.options.host, self.options.port)
        return plan

    async def _in_this_process(self, plan: Plan, progress: Progress) -> None:
        services = []
        for name in SERVICES:
            (replica,) = [replica for replica in plan.replicas if replica.service == name]
            services.append(await _build(name, plan.environment(replica)))

        async def ready() -> None:
            progress.done("services: " + ", ".join(SERVICES))
            await self._serve(plan, progress)

        try:
            await lifecycle.run(services, grace_seconds=10.0, ready=ready)
        finally:
            await self._envoy.stop()

    async def _in_processes(self, plan: Plan, progress: Progress) -> None:
        async with asyncio.TaskGroup() as group:
            for replica in plan.replicas:
                child = Child(
                    replica.name,
                    [sys.executable, "-m", f"services.{replica.service}", "serve"],
                    self.state.path / "logs" / f"{replica.name}.log",
                    _Serving(replica),
                    environment={**os.environ, **plan.environment(replica)},
                )
                self._stack.append(child)
                group.create_task(child.start(60.0))
        progress.done(f"{len(plan.replicas)} service processes")
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        try:
            await self._serve(plan, progress)
            write_private(
                self.state.path / "run" / "replicas.txt",
                "".join(f"{replica.name} {replica.listen}\n" for replica in plan.replicas),
            )
            await stopping.wait()
        finally:
            await self._envoy.stop()

    async def _serve(self, plan: Plan, progress: Progress) -> None:
        self._envoy.validate()
        await self._envoy.start()
        await _answers(f"{self.options.host}:{self.options.port}")
        progress.done("Envoy")
        await self._banner(plan, progress.seconds)

    async def _banner(self, plan: Plan, seconds: float) -> None:
        host = "localhost" if self.options.host in ("127.0.0.1", "0.0.0.0") else self.options.host
        base = f"http://{host}:{self.options.port}"
        password = self.state.path / "admin-password"
        lines = [
            f"ready in {seconds:.1f} s",
            "",
            f"  API (gRPC, gRPC-Web, JSON)   {base}",
            f"  documentation                {base}/docs   {base}/redoc",
            f"  state                        {self.state.path.resolve()}",
        ]
        if password.exists():
            email = os.environ.get("AIAGENT_ADMIN_EMAIL", "admin@aiagent.local")
            lines.append(f"  administrator                {email}, password in {password}")
        if not os.environ.get("ANTHROPIC_API_KEY") and not _in_dotenv("ANTHROPIC_API_KEY"):
            lines += [
                "",
                "  No ANTHROPIC_API_KEY: the scripted offline model answers. Everything else is real.",
            ]
        print("\n".join(lines) + "\n", flush=True)


async def _build(name: str, variables: Mapping[str, str]) -> lifecycle.Service:
    """Composes a service in this process, from the variables it would have as a process of its own."""
    settings = importlib.import_module(f"services.{name}.settings")
    bootstrap = importlib.import_module(f"services.{name}.bootstrap")
    kind = getattr(settings, f"{name.capitalize()}Settings")
    saved = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        values = kind()
    finally:
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    return await bootstrap.build(values)  # type: ignore[no-any-return]  # found by name


class _Serving:
    """Asks a replica's health service."""

    def __init__(self, replica: Replica) -> None:
        self._target = replica.listen

    async def __call__(self) -> bool:
        return await _healthy(self._target)


async def _healthy(target: str) -> bool:
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=1.0
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _answers(target: str, timeout_seconds: float = 20.0) -> None:
    """Waits until calls get through the public port."""
    async with asyncio.timeout(timeout_seconds):
        while not await _healthy(target.replace("0.0.0.0", "127.0.0.1")):
            await asyncio.sleep(0.05)


def _short(path: Path) -> Path:
    """A path for a Unix socket: the kernel takes 107 bytes."""
    resolved = path.resolve()
    if len(os.fsencode(resolved)) <= 100:
        return resolved
    folder = Path(f"/tmp/aiagent-{os.geteuid()}-{abs(hash(str(resolved))) % 10**8}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / path.name


def _in_dotenv(name: str) -> bool:
    try:
        text = Path(".env").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(
        line.split("=", 1)[0].strip() == name and line.split("=", 1)[1].strip()
        for line in text.splitlines()
        if "=" in line
    )
