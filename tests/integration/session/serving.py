"""A session service as it is deployed, with a scripted executor behind it and callers in front of it.

Real are the gRPC server, PostgreSQL, Valkey, the driver, the blobs and the workspaces. Played are auth, of which only
the published keys are needed, and the executor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from aiagent.executor.v1 import executor_service_pb2_grpc
from aiagent.session.v1 import session_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.permission_service_pb2_grpc import PermissionServiceStub
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from aiagent.session.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from deploy.local.servers import Valkey
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.errors import ServiceError
from services.kernel.grpc import error_from_rpc
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.identity import Caller, Role, generate_private_key, private_key_to_text
from services.kernel.testing import AccessTokens, a_caller, running_server
from services.session.bootstrap import SessionService, build
from services.session.settings import SessionSettings
from services.session.store import tables
from tests.databases import Copy

from .driving import POLICIES
from .scripted_executor import Attempt, Play, ScriptedExecutor

LIMIT = 2 * 1024 * 1024
"""What a workspace may hold in these tests, in bytes."""
_AUTH = {"/aiagent.auth.v1.AuthService/GetJwks": PUBLIC}
_OF_A_SESSION = (
    tables.sessions,
    tables.session_heads,
    tables.turns,
    tables.events,
    tables.messages,
    tables.tool_calls,
    tables.permission_requests,
    tables.event_contents,
    tables.transcript_entries,
)


class Keys(auth_service_pb2_grpc.AuthServiceServicer):
    """Auth, as far as it publishes its keys."""

    def __init__(self, tokens: AccessTokens) -> None:
        self._tokens = tokens

    async def GetJwks(self, request: Any, context: Any) -> auth_service_pb2.GetJwksResponse:
        return json_format.ParseDict(dict(await self._tokens.fetch()), auth_service_pb2.GetJwksResponse())


async def greet(attempt: Attempt) -> None:
    """What an agent does that was told nothing else."""
    attempt.started()
    attempt.say("hello there")
    attempt.end("SUCCEEDED")


async def ask(attempt: Attempt) -> None:
    """Wants to run a command, and says what came of it."""
    call = f"call-of-{attempt.request.fence.turn_id}"
    attempt.started()
    attempt.ask(call, "Bash", {"command": "make"})
    asked = asyncio.ensure_future(attempt.decided(call))
    stopped = asyncio.ensure_future(attempt.interrupted.wait())
    await asyncio.wait((asked, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not asked.done():
        asked.cancel()
        attempt.end("PARKED" if attempt.parked else "INTERRUPTED")
        return
    decision = asked.result()
    attempt.result(call, "made" if decision.allow else decision.reason, is_error=not decision.allow)
    attempt.say("done" if decision.allow else "not allowed")
    attempt.end("SUCCEEDED")


async def stay(attempt: Attempt) -> None:
    """Works until it is stopped."""
    attempt.started()
    attempt.say("this takes long")
    await attempt.interrupted.wait()
    attempt.end("PARKED" if attempt.parked else "INTERRUPTED")


class _Stub:
    """A stub whose every call carries the caller's token and a deadline."""

    def __init__(self, stub: Any, metadata: Any, deadline_seconds: float) -> None:
        self._stub, self._metadata, self._deadline = stub, metadata, deadline_seconds

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(getattr(self._stub, method), metadata=self._metadata, timeout=self._deadline)


class Client:
    """Calls as one person."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any, caller: Caller) -> None:
        self.caller = caller
        self.sessions = _Stub(SessionServiceStub(channel), metadata, 40)
        self.permissions = _Stub(PermissionServiceStub(channel), metadata, 40)
        self.workspaces = _Stub(WorkspaceServiceStub(channel), metadata, 40)

    def stub(self, service: str) -> _Stub:
        """The stub of a service, by the name in its contract."""
        return {
            "SessionService": self.sessions,
            "PermissionService": self.permissions,
            "WorkspaceService": self.workspaces,
        }[service]

    async def session(self, **fields: Any) -> session_pb2.Session:
        """Creates a session."""
        created: session_pb2.Session = await self.sessions.CreateSession(pb.CreateSessionRequest(**fields))
        return created

    async def send(self, session_id: str, message: str = "greet", **fields: Any) -> session_pb2.Turn:
        """Sends a message."""
        turn: session_pb2.Turn = await self.sessions.SendMessage(
            pb.SendMessageRequest(session_id=session_id, message=message, **fields)
        )
        return turn

    async def wait(self, turn: session_pb2.Turn) -> pb.WaitTurnResponse:
        """Waits until a turn has ended, or asks a person."""
        waited: pb.WaitTurnResponse = await self.sessions.WaitTurn(
            pb.WaitTurnRequest(session_id=turn.session_id, turn_id=turn.id, wait_seconds=30)
        )
        return waited

    async def talk(self, session_id: str, message: str = "greet") -> session_pb2.Turn:
        """Sends a message and waits for what comes of it."""
        return (await self.wait(await self.send(session_id, message))).turn

    async def question(self, session_id: str) -> session_pb2.PermissionRequest:
        """Lets the agent want to run a command; returns the question that nobody has answered."""
        waited = await self.wait(await self.send(session_id, "ask"))
        (request,) = waited.permission_requests
        return request

    async def get(self, session_id: str) -> session_pb2.Session:
        """Reads a session."""
        found: session_pb2.Session = await self.sessions.GetSession(
            pb.GetSessionRequest(session_id=session_id)
        )
        return found

    async def events(self, session_id: str) -> list[Any]:
        """The whole log of a session with less than a thousand events."""
        listed = await self.sessions.ListEvents(pb.ListEventsRequest(session_id=session_id, page_size=1000))
        return list(listed.events)


@dataclass
class Serving:
    """A running session service, and what a test needs to look behind it."""

    service: SessionService
    settings: SessionSettings
    database: Database
    executor: ScriptedExecutor
    tokens: AccessTokens
    channel: grpc.aio.Channel
    plays: dict[str, Play] = field(default_factory=lambda: {"greet": greet, "ask": ask, "stay": stay})

    async def play(self, attempt: Attempt) -> None:
        """Plays what the message's first word names."""
        await self.plays.get(attempt.request.prompt.partition(" ")[0], greet)(attempt)

    def client(
        self,
        caller: Caller | None = None,
        *,
        lifetime: timedelta = timedelta(hours=1),
        channel: grpc.aio.Channel | None = None,
    ) -> Client:
        """A person with a token, somebody new by default, on the test's channel by default."""
        caller = caller or a_caller()
        token = self.tokens.token(caller, lifetime)
        return Client(channel or self.channel, (("authorization", f"Bearer {token}"),), caller)

    def colleague(self, of: Client, role: Role = Role.USER) -> Client:
        """Somebody else in the same organization."""
        return self.client(a_caller(organization_id=of.caller.organization_id, role=role))

    def demoted(self, client: Client) -> Client:
        """The same person with the role of a viewer."""
        caller = client.caller
        return self.client(
            a_caller(user_id=caller.user_id, organization_id=caller.organization_id, role=Role.VIEWER)
        )

    def workspace(self, session_id: str) -> Path:
        """A session's directory."""
        return self.settings.workspace_root / session_id

    def files(self, session_id: str) -> dict[str, bytes | None]:
        """What lies in a workspace: content by name, None for what is no file."""
        root = self.workspace(session_id)
        return {
            str(path.relative_to(root)): path.read_bytes()
            if path.is_file() and not path.is_symlink()
            else None
            for path in sorted(root.rglob("*"))
        }

    async def rows(self, table: sa.Table, session_id: str) -> list[Any]:
        """All rows of a session in a table."""
        column = table.c.id if table is tables.sessions else table.c.session_id
        query = sa.select(table).where(column == UUID(session_id)).order_by(*table.primary_key.columns)
        async with self.database.system() as connection:
            return list((await connection.execute(query)).all())

    async def count(self, table: sa.Table, organization_id: UUID) -> int:
        """How many rows an organization has in a table."""
        query = sa.select(sa.func.count()).where(table.c.organization_id == organization_id)
        async with self.database.system() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def everything(self, session_id: str) -> dict[str, Any]:
        """All that is kept of a session, to compare; without what its driver says of its own life."""
        kept: dict[str, Any] = {"files": self.files(session_id)}
        for table in _OF_A_SESSION:
            kept[table.name] = [
                {
                    name: value
                    for name, value in row._mapping.items()
                    if not name.startswith("lease_") and name != "heartbeat_time"
                }
                for row in await self.rows(table, session_id)
            ]
        return kept

    async def change(self, statement: sa.Executable) -> None:
        """Changes rows behind the service's back."""
        async with self.database.system() as connection:
            await connection.execute(statement)

    async def until(self, condition: Callable[[], Awaitable[Any]], timeout_seconds: float = 20.0) -> Any:
        """Polls until a condition holds, and returns what it found."""
        async with asyncio.timeout(timeout_seconds):
            while not (found := await condition()):
                # The database and the file system tell nobody when they change.
                await SystemClock().sleep(0.02)
            return found


@asynccontextmanager
async def serving(
    databases: Copy, valkey: Valkey | None, directory: Path, **settings: Any
) -> AsyncIterator[Serving]:
    """Runs a session service on a database; without `valkey` it does without."""
    tokens = AccessTokens()
    executor = ScriptedExecutor(greet)
    async with AsyncExitStack() as stack:
        auth, _ = await stack.enter_async_context(
            running_server(
                register=[partial(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, Keys(tokens))],
                policies=_AUTH,
                domain="auth.aiagent",
            )
        )
        behind, _ = await stack.enter_async_context(
            running_server(
                register=[partial(executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server, executor)],
                policies=POLICIES,
                domain="executor.aiagent",
            )
        )
        values = SessionSettings(
            _env_file=None,
            **{
                "session_listen": "127.0.0.1:0",
                "session_database_url": databases.url("session_application"),
                "session_system_database_url": databases.url("session_system"),
                "redis_url": valkey.url if valkey else None,
                "auth_targets": f"127.0.0.1:{auth.port}",
                "executor_targets": f"127.0.0.1:{behind.port}",
                "blob_url": f"file://{directory}/blobs",
                "workspace_root": directory / "workspaces",
                "workspace_limit_bytes": LIMIT,
                "service_key": private_key_to_text(generate_private_key()),
                **settings,
            },
        )
        database = databases.open("session")
        stack.push_async_callback(database.close)
        service = await build(values)
        stack.push_async_callback(service.stop)
        await service.start()
        # A pool of connections of its own: another server of the test may have had the same port.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", LIMIT * 4)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{service.port}", options=options)
        )
        running = Serving(service, values, database, executor, tokens, channel)
        executor.play = running.play
        yield running


async def refusal(call: Any) -> ServiceError:
    """Returns the error that a call or a stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                continue
        else:
            await call
    return error_from_rpc(caught.value)


async def reason(call: Any) -> str:
    """Returns status and reason of the error that a call or a stream ends with."""
    error = await refusal(call)
    return f"{error.kind.value} {error.reason}"


async def field_of(call: Any) -> str:
    """Returns the field that a call was refused for."""
    error = await refusal(call)
    assert (error.kind.value, error.domain) == ("INVALID_ARGUMENT", "session.aiagent"), error
    assert error.violations, error
    return error.violations[0].field
