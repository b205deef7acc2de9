"""A real PostgreSQL with the schema `auth`, and auth services on it, each in its own database where a test asks."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.message import Message

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from deploy.local.postgres import Postgres
from services.auth.bootstrap import AuthService, build
from services.auth.settings import AuthSettings
from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.grpc import error_from_rpc
from tests.databases import Copy, copy_database, drop_database

PASSWORD = "correct horse battery"
# Enough to be bcrypt, cheap enough for tests.
ROUNDS = 4


def an_encryption_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


@dataclass
class Databases:
    """Makes databases with the schema `auth` on one server."""

    server: Postgres
    made: list[Copy] = field(default_factory=list)

    async def fresh(self) -> str:
        """Returns the name of a database in which nothing has happened yet."""
        copy = await copy_database(self.server, f"auth_{uuid4().hex[:12]}")
        self.made.append(copy)
        return copy.name

    def url(self, role: str, database: str) -> str:
        return self.server.url(role, database)

    async def as_superuser(self, database: str) -> asyncpg.Connection:
        return await self.server.connect(database)


@pytest.fixture(scope="session")
async def auth_databases(postgres: Postgres) -> AsyncIterator[Databases]:
    databases = Databases(postgres)
    yield databases
    for copy in databases.made:
        await drop_database(copy)


@dataclass
class Auth:
    """A running auth service and what a test needs to look behind it."""

    service: AuthService
    settings: AuthSettings
    database: str
    databases: Databases
    channel: grpc.aio.Channel
    announced: list[tuple[str, str, Path]]

    @property
    def stub(self) -> Any:
        return AuthServiceStub(self.channel)

    async def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Runs a statement as the superuser."""
        connection = await self.databases.as_superuser(self.database)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def register(self, **fields: Any) -> pb.RegisterRequest:
        """Registers somebody new; returns what was sent."""
        request = a_registration(**fields)
        await self.stub.Register(request)
        return request

    async def login(self, request: pb.RegisterRequest, **options: Any) -> pb.LoginResponse:
        return await self.stub.Login(
            pb.LoginRequest(email=request.email, password=request.password), **options
        )


def a_registration(**fields: Any) -> pb.RegisterRequest:
    name = f"u{uuid4().hex[:12]}"
    return pb.RegisterRequest(
        **({"email": f"{name}@example.org", "username": name, "password": PASSWORD} | fields)
    )


def from_address(address: str, user_agent: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata as the proxy adds them for a client at this address."""
    return (("x-forwarded-for", f"203.0.113.99, {address}"),) + (
        (("user-agent", user_agent),) if user_agent else ()
    )


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def refusal(call: Awaitable[Message]) -> ServiceError:
    """Returns the error that the call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def reason(call: Awaitable[Message]) -> str:
    """Returns status and reason of the error that the call ends with."""
    error = await refusal(call)
    assert error.domain == "auth.aiagent"
    return f"{error.kind.value} {error.reason}"


Start = Callable[..., Any]


@asynccontextmanager
async def running_auth(
    databases: Databases,
    state_dir: Path,
    *,
    database: str | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Auth]:
    """Runs a service on a fresh database, or on a given one."""
    database = database or await databases.fresh()
    values = AuthSettings(
        _env_file=None,
        **(
            {
                "auth_listen": "127.0.0.1:0",
                "auth_database_url": databases.url("auth_application", database),
                "auth_system_database_url": databases.url("auth_system", database),
                "auth_encryption_key": an_encryption_key(),
                "auth_bcrypt_rounds": ROUNDS,
                "state_dir": state_dir,
            }
            | settings
        ),
    )
    announced: list[tuple[str, str, Path]] = []
    service = await build(values, clock=clock, announce=lambda *told: announced.append(told))
    try:
        await service.start()
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}", options=options) as channel:
            yield Auth(service, values, database, databases, channel, announced)
    finally:
        await service.stop()


@pytest.fixture(scope="session")
async def auth(auth_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Auth]:
    """One service for the tests that register people of their own."""
    async with running_auth(auth_databases, tmp_path_factory.mktemp("auth-state")) as running:
        yield running


async def together[T](*calls: Awaitable[T]) -> list[T | BaseException]:
    """Awaits all at once; errors are among the results."""
    return await asyncio.gather(*calls, return_exceptions=True)
