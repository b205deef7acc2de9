"""Where the harness runs: PostgreSQL, a broker, scheduler processes and worker processes, played neighbours."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from aiagent.session.v1 import session_service_pb2, session_service_pb2_grpc
from deploy.local.children import Child
from deploy.local.environment import Plan, Replica
from deploy.local.ports import free_port
from deploy.local.postgres import Postgres
from deploy.local.servers import Kafka, listens
from deploy.local.services import Serving
from deploy.local.state import StateDirectory
from services.kernel.db import Database
from services.kernel.db.migrations import upgrade
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.testing import AccessTokens, running_server
from tests.integration.session.serving import Keys

from .played import PlayedSessions

ROOT = Path(__file__).parents[2]
_POLICIES = {
    f"/{service.full_name}/{method.name}": PUBLIC
    for file in (auth_service_pb2.DESCRIPTOR, session_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True)
class Crew:
    """How many processes of what.

    Attributes:
        schedulers: That fire.
        workers: That carry runs.
        places: Of each worker.
        embedded: Whether the schedulers carry runs, too, in as many places.
        kafka: The variables that name a broker; a local one is started if left out.
        broker_pid: Of that broker, where it may be killed.
    """

    schedulers: int = 3
    workers: int = 3
    places: int = 20
    embedded: bool = False
    kafka: Mapping[str, str] | None = None
    broker_pid: Path | None = None


@dataclass
class Floor:
    """All of it, up.

    Attributes:
        database: The scheduler schema.
        sessions: The played session service.
        processes: Scheduler and worker processes by name; one that dies is started again.
        broker: The local broker; None where another was named.
    """

    database: Database
    sessions: PlayedSessions
    processes: dict[str, Child]
    broker: Kafka | None


@asynccontextmanager
async def floor(
    directory: Path, crew: Crew, chance: random.Random, longest_seconds: float
) -> AsyncIterator[Floor]:
    """Starts it in a directory.

    Args:
        directory: of this run alone.
        crew: who works.
        chance: draws how long turns are.
        longest_seconds: of a turn.
    """
    state = StateDirectory(directory)
    state.open()
    secrets = state.secrets()
    async with AsyncExitStack() as stack:
        postgres = Postgres(state, secrets)
        stack.push_async_callback(postgres.stop)
        await postgres.start()
        await postgres.provision()
        owner = postgres.url("scheduler_owner")
        await upgrade(owner, "scheduler", ROOT / "services" / "scheduler" / "migrations")
        broker = None
        if crew.kafka is None:
            broker = Kafka(state)
            stack.push_async_callback(broker.stop)
            await broker.start()
        sessions, tokens = PlayedSessions(longest_seconds, chance), AccessTokens()
        played, _ = await stack.enter_async_context(
            running_server(
                register=[
                    partial(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, Keys(tokens)),
                    partial(session_service_pb2_grpc.add_SessionServiceServicer_to_server, sessions),
                ],
                policies=_POLICIES,
            )
        )
        urls = {role: postgres.url(role) for role in secrets.database_roles}
        plan = Plan(
            directory.resolve(),
            secrets,
            urls,
            "",
            {"scheduler": crew.schedulers},
            kafka_url=broker.url if broker else "",
            kafka_is_local=broker is not None,
        )
        told = {
            "AIAGENT_AUTH_TARGETS": f"127.0.0.1:{played.port}",
            "AIAGENT_SESSION_TARGETS": f"127.0.0.1:{played.port}",
            # The schedules are those of a few users, and each fire is to be carried out at once.
            "AIAGENT_SCHEDULER_MAX_RUNS_PER_USER": "0",
            **(crew.kafka or {}),
        }
        processes = {}
        for replica in plan.replicas:
            places = crew.places if crew.embedded else 0
            environment = {
                **plan.environment(replica),
                **told,
                "AIAGENT_SCHEDULER_WORKER_PLACES": str(places),
            }
            processes[replica.name] = _process(replica.name, "serve", replica.listen, environment, directory)
        for number in range(1, crew.workers + 1):
            metrics = f"127.0.0.1:{free_port()}"
            replica = Replica("scheduler", number, metrics, metrics)
            environment = {
                **plan.environment(replica),
                **told,
                "AIAGENT_SCHEDULER_WORKER_PLACES": str(crew.places),
            }
            processes[f"worker-{number}"] = _process(
                f"worker-{number}", "worker", metrics, environment, directory
            )
        for process in processes.values():
            stack.push_async_callback(process.stop)
            await process.start(60.0)
        database = Database(urls["scheduler_application"], urls["scheduler_system"])
        stack.push_async_callback(database.close)
        yield Floor(database, sessions, processes, broker)


def _process(name: str, role: str, listen: str, environment: Mapping[str, str], directory: Path) -> Child:
    return Child(
        name,
        [sys.executable, "-m", "services.scheduler", role],
        directory / "logs" / f"{name}.log",
        Serving(listen) if role == "serve" else partial(listens, *_address(listen)),
        run=directory / "run",
        environment={**os.environ, **environment},
    )


def _address(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)
