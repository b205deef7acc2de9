"""Runs the suite: servers, migrations, services, until it is told to stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from deploy.envoy.config import LOCAL_ORIGINS, SERVICES, EnvoySettings, render
from deploy.local import services
from deploy.local.children import Child, sweep
from deploy.local.console import Facts, Progress, banner
from deploy.local.environment import DRAIN_SECONDS, Plan
from deploy.local.ports import why_not_bind
from deploy.local.postgres import Postgres
from deploy.local.servers import Envoy, Kafka, Valkey
from deploy.local.settings import LocalSettings
from deploy.local.state import SCHEMAS, LocalError, StateDirectory, write_private
from services.kernel import lifecycle
from services.kernel.db.migrations import upgrade
from services.kernel.telemetry import MetricsServer

_log = structlog.get_logger(__name__)
ROOT = Path(__file__).parents[2]
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SOCKET_PATH_BYTES = 100


@dataclass
class Options:
    """How the suite is to run.

    Attributes:
        processes: One process for each replica, instead of one for all services.
        counts: Replicas of each service; more than one needs `processes`.
        workers: Processes that carry runs of tasks, with `processes`; with none the scheduler's replicas do it.
    """

    processes: bool = False
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(services.NAMES, 1))
    workers: int = 1


class Suite:
    """One local suite, from its start to its end."""

    def __init__(self, settings: LocalSettings, state: StateDirectory, options: Options) -> None:
        """Args: settings: what a person has set; state: held by this process; options: how it is to run."""
        self.settings = settings
        self.state = state
        self.options = options
        self._run = state.path.resolve() / "run"
        self._progress = Progress()

    async def run(self) -> None:
        """Starts everything, says so, and stays up until SIGTERM or SIGINT.

        Raises:
            LocalError: Something a person has to mend.
        """
        self._check_port()
        print("AI-Agent-API starts", flush=True)
        for name in await asyncio.to_thread(sweep, self._run):
            _log.warning("left by a killed run, ended now", process=name)
        self._stop_early()
        async with AsyncExitStack() as stack:
            plan = await self._servers(stack)
            envoy = self._edge(plan)
            if self.options.processes:
                await self._in_processes(plan, envoy)
            else:
                await self._in_this_process(plan, envoy)
            print("stopping", flush=True)

    async def migrate(self) -> None:
        """Brings the schemas up to date, and ends.

        Raises:
            LocalError: Something a person has to mend.
        """
        async with AsyncExitStack() as stack:
            await self._servers(stack)

    def _check_port(self) -> None:
        host, port = self.settings.http_host, self.settings.http_port
        error = why_not_bind(host, port)
        if error is not None:
            raise LocalError(
                f"cannot listen on port {port} of {host} ({os.strerror(error.errno or 0)});"
                " set AIAGENT_HTTP_PORT to another, or AIAGENT_HTTP_HOST"
            )

    def _stop_early(self) -> None:
        # Until the services take over the signals: a start that is called off puts its servers away too.
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("runs in a task")
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    async def _servers(self, stack: AsyncExitStack) -> Plan:
        secrets = self.state.secrets()
        postgres, valkey = Postgres(self.state, secrets), Valkey(self.state, secrets)
        outer = self.settings.kafka_url
        kafka = None if outer else Kafka(self.state, self.settings.kafka_port)
        servers = (postgres, valkey, kafka) if kafka else (postgres, valkey)
        for server in servers:
            stack.push_async_callback(server.stop)
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server.start())
        await postgres.provision()
        self._progress.done("PostgreSQL, Valkey and a Kafka broker" if kafka else "PostgreSQL and Valkey")
        urls = {role: postgres.url(role) for role in secrets.database_roles}
        for schema in SCHEMAS:
            await upgrade(urls[f"{schema}_owner"], schema, ROOT / "services" / schema / "migrations")
        self._progress.done("migrations")
        return Plan(
            self.state.path.resolve(),
            secrets,
            urls,
            valkey.url,
            self.options.counts,
            kafka_url=kafka.url if kafka else outer,
            kafka_is_local=kafka is not None,
            worker_count=self.options.workers if self.options.processes else 0,
        )

    def _edge(self, plan: Plan) -> Envoy:
        configuration = self._run / "envoy.json"
        settings = EnvoySettings(
            host=self.settings.http_host,
            port=self.settings.http_port,
            endpoints={name: plan.targets(name) for name in SERVICES},
            admin_socket=short_path(self._run / "envoy.sock"),
            origins=(*LOCAL_ORIGINS, *self.settings.origins),
        )
        write_private(configuration, render(settings))
        return Envoy(self.state, configuration, self.settings.http_host, self.settings.http_port)

    async def _in_this_process(self, plan: Plan, envoy: Envoy) -> None:
        built = [
            await services.compose(replica.service, plan.environment(replica)) for replica in plan.replicas
        ]

        async def ready() -> None:
            self._progress.done("services: " + ", ".join(service.name for service in built))
            await self._open(plan, envoy)

        metrics = MetricsServer.at(plan.metrics[0])
        await metrics.start()
        try:
            await lifecycle.run(built, grace_seconds=DRAIN_SECONDS, ready=ready)
        finally:
            await metrics.stop()
            # Last, so that the ends of streams and calls still get out.
            await envoy.stop()

    async def _in_processes(self, plan: Plan, envoy: Envoy) -> None:
        children = [
            Child(
                replica.name,
                [sys.executable, "-m", f"services.{replica.service}", replica.role],
                self.state.path / "logs" / f"{replica.name}.log",
                services.readiness(replica),
                run=self._run,
                environment=service_environment(replica.service, plan.environment(replica)),
            )
            for replica in [*plan.replicas, *plan.workers]
        ]
        stopping = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(child.start(60.0))
            self._progress.done(f"{len(children)} processes of services")
            await self._open(plan, envoy)
            for number in _SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, stopping.set)
            await stopping.wait()
        finally:
            await asyncio.gather(*(child.stop(DRAIN_SECONDS + 10.0) for child in children))
            await envoy.stop()

    async def _open(self, plan: Plan, envoy: Envoy) -> None:
        await envoy.start()
        await services.answering(envoy.target)
        self._progress.done("Envoy")
        executor = await services.executor_facts(plan)
        host = "localhost" if envoy.target.startswith("127.0.0.1:") else self.settings.http_host
        facts = Facts(
            base_url=f"http://{host}:{self.settings.http_port}",
            state=self.state.path.resolve(),
            administrator=self.settings.admin_email,
            isolation=executor.isolation,
            offline=executor.offline,
            seconds=self._progress.seconds,
        )
        replicas = {replica.name: replica.listen for replica in plan.replicas}
        note = {
            "pid": os.getpid(),
            "base_url": facts.base_url,
            "public": envoy.target,
            "replicas": replicas,
            "metrics": plan.metrics if self.options.processes else plan.metrics[:1],
            "workers": {worker.name: worker.metrics for worker in plan.workers},
            # Without its password: that is among the secrets.
            "redis": plan.redis_url.rpartition("@")[2],
            "kafka": plan.kafka_url,
        }
        write_private(self._run / "suite.json", json.dumps(note, indent=1))
        print(banner(facts), flush=True)


def service_environment(service: str, told: dict[str, str]) -> dict[str, str]:
    """The environment of a service's process: the person's, and what it is told; the model's key only where used."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if service == "executor" or name != "ANTHROPIC_API_KEY"
    }
    return {**inherited, **told}


def short_path(path: Path) -> Path:
    """A path for a Unix socket, of which the kernel takes no more than 107 bytes.

    Raises:
        LocalError: The path is too long, and somebody else has the directory that would stand in.
    """
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]
    folder = Path(f"/tmp/aiagent-{os.geteuid()}-{name}")  # noqa: S108  # checked below
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        raise LocalError(f"{folder} is not ours; use a state directory with a shorter path")
    return folder / path.name
