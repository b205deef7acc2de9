"""One session process on a PostgreSQL and a Valkey of its own, for benchmarks that ask what one process can do.

It is the process that the suite starts, with the suite's settings. Played in this process are auth, of which only the
published keys are needed, and the executor, which says what a benchmark lets it say.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from google.protobuf import json_format

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from aiagent.events.v1 import content_pb2
from aiagent.executor.v1 import executor_service_pb2, executor_service_pb2_grpc, turn_item_pb2
from aiagent.executor.v1 import executor_service_pb2 as pb
from deploy.local.children import Child
from deploy.local.environment import Plan
from deploy.local.postgres import Postgres
from deploy.local.servers import Valkey
from deploy.local.services import Serving
from deploy.local.state import SCHEMAS, StateDirectory
from services.kernel.db.migrations import upgrade
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.testing import AccessTokens, a_caller, running_server

ROOT = Path(__file__).parents[1]
Batch = list[turn_item_pb2.TurnItem]
Says = Callable[[], AsyncIterator[Batch]]
_POLICIES = {
    f"/{service.full_name}/{method.name}": PUBLIC
    for file in (auth_service_pb2.DESCRIPTOR, executor_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


class PlayedAuth(auth_service_pb2_grpc.AuthServiceServicer):
    """Auth, as far as it publishes its keys."""

    def __init__(self, tokens: AccessTokens) -> None:
        self._tokens = tokens

    async def GetJwks(self, request: Any, context: Any) -> auth_service_pb2.GetJwksResponse:
        """The key that signs the callers' tokens."""
        return json_format.ParseDict(dict(await self._tokens.fetch()), auth_service_pb2.GetJwksResponse())


class PlayedExecutor(executor_service_pb2_grpc.ExecutorServiceServicer):
    """An executor whose agent says what `says` yields, in the batches in which it yields it."""

    def __init__(self) -> None:
        self.says: Says | None = None
        self._incarnation = str(uuid4())

    async def RunTurn(self, request: pb.RunTurnRequest, context: Any) -> AsyncIterator[pb.RunTurnResponse]:
        """Plays a turn."""
        offset = 1
        started = turn_item_pb2.AgentStarted(cli_session_id=str(uuid4()), model="m", offline_model=True)
        yield pb.RunTurnResponse(items=[turn_item_pb2.TurnItem(offset=offset, agent_started=started)])
        if self.says is not None:
            async for batch in self.says():
                for item in batch:
                    offset += 1
                    item.offset = offset
                yield pb.RunTurnResponse(items=batch)
        ended = turn_item_pb2.AttemptEnded(
            outcome=turn_item_pb2.AttemptEnded.SUCCEEDED, usage=content_pb2.Usage(), model_calls=1
        )
        yield pb.RunTurnResponse(items=[turn_item_pb2.TurnItem(offset=offset + 1, attempt_ended=ended)])

    async def AckTurn(self, request: pb.AckTurnRequest, context: Any) -> pb.AckTurnResponse:
        """Forgets nothing: there is no buffer."""
        return pb.AckTurnResponse()

    async def HeartbeatTurn(self, request: pb.HeartbeatTurnRequest, context: Any) -> pb.HeartbeatTurnResponse:
        """Needs no driver."""
        return pb.HeartbeatTurnResponse()

    async def GetExecutor(self, request: pb.GetExecutorRequest, context: Any) -> pb.GetExecutorResponse:
        """Has room."""
        return pb.GetExecutorResponse(
            executor_id="played", incarnation=self._incarnation, max_live_clients=1000, offline_model=True
        )


@dataclass
class SessionAlone:
    """The running process.

    Attributes:
        target: Where it listens.
        process: Itself, to read its CPU time.
        others: PostgreSQL's and Valkey's processes.
        metadata: What the calls of one user carry.
        variables: The environment it was started with: its database's URL, and the key set's owner.
    """

    target: str
    process: psutil.Process
    executor: PlayedExecutor
    tokens: AccessTokens
    variables: dict[str, str]
    metadata: tuple[tuple[str, str], ...] = field(default_factory=tuple)

    @property
    def others(self) -> list[psutil.Process]:
        """Everything else that this process has started: the servers, and whoever calls."""
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if process.pid != self.process.pid
        ]


@asynccontextmanager
async def session_alone(directory: Path) -> AsyncIterator[SessionAlone]:
    """Starts it in a directory; PostgreSQL is durable, as the suite's is."""
    state = StateDirectory(directory)
    state.open()
    secrets = state.secrets()
    tokens, executor = AccessTokens(), PlayedExecutor()
    async with AsyncExitStack() as stack:
        postgres, valkey = Postgres(state, secrets), Valkey(state, secrets)
        for server in (postgres, valkey):
            stack.push_async_callback(server.stop)
            await server.start()
        await postgres.provision()
        for schema in SCHEMAS:
            await upgrade(postgres.url(f"{schema}_owner"), schema, ROOT / "services" / schema / "migrations")
        played, _ = await stack.enter_async_context(
            running_server(
                register=[
                    partial(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, PlayedAuth(tokens)),
                    partial(executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server, executor),
                ],
                policies=_POLICIES,
            )
        )
        urls = {role: postgres.url(role) for role in secrets.database_roles}
        plan = Plan(directory.resolve(), secrets, urls, valkey.url, {"session": 1})
        (replica,) = plan.replicas
        variables = plan.environment(replica) | {
            "AIAGENT_AUTH_TARGETS": f"127.0.0.1:{played.port}",
            "AIAGENT_EXECUTOR_TARGETS": f"127.0.0.1:{played.port}",
            "AIAGENT_SESSION_MAX_WATCHES_PER_USER": "10000",
        }
        child = Child(
            replica.name,
            [sys.executable, "-m", "services.session", "serve"],
            directory / "logs" / "session-1.log",
            Serving(replica.listen),
            run=directory / "run",
            environment={**os.environ, **variables},
        )
        stack.push_async_callback(child.stop)
        await child.start(60.0)
        assert child.pid is not None
        yield SessionAlone(
            replica.listen,
            psutil.Process(child.pid),
            executor,
            tokens,
            variables,
            tokens.metadata(a_caller()),
        )


async def in_a_process(*arguments: str, told: dict[str, Any] | None = None) -> asyncio.subprocess.Process:
    """Starts a Python program of its own that reads one line of JSON, so that clients take no time of this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(told or {}).encode() + b"\n")
    await process.stdin.drain()
    return process


async def line_of(process: asyncio.subprocess.Process, timeout_seconds: float = 120.0) -> Any:
    """Reads the next line of JSON that such a program prints.

    Raises:
        RuntimeError: It has ended instead.
    """
    assert process.stdout is not None
    async with asyncio.timeout(timeout_seconds):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a client process ended early")
    return json.loads(line)
