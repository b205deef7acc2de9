"""A scheduler service as it is deployed, on a real database, with callers in front of it. Played is auth's key set."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import sqlalchemy as sa

from aiagent.auth.v1 import auth_service_pb2_grpc
from aiagent.scheduler.v1 import run_pb2, schedule_pb2, task_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from aiagent.scheduler.v1.webhook_service_pb2_grpc import WebhookServiceStub
from services.kernel.db import Database
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.identity import Caller, Role, generate_private_key, private_key_to_text
from services.kernel.identity.keys import base64url_encode
from services.kernel.testing import AccessTokens, a_caller, running_server
from services.scheduler.bootstrap import SchedulerService, build
from services.scheduler.settings import SchedulerSettings
from tests.databases import Copy
from tests.integration.session.serving import Keys, refusal

_AUTH = {"/aiagent.auth.v1.AuthService/GetJwks": PUBLIC}


class Client:
    """Calls as one person: `client.GetTask(request)`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any, caller: Caller) -> None:
        self.caller = caller
        self._stubs = (SchedulerServiceStub(channel), WebhookServiceStub(channel))
        self._metadata = metadata

    def __getattr__(self, method: str) -> Callable[..., Any]:
        call = next(getattr(stub, method) for stub in self._stubs if hasattr(stub, method))
        return partial(call, metadata=self._metadata, timeout=20)

    async def task(self, **fields: Any) -> task_pb2.Task:
        """Creates a task."""
        values = {"name": "a task", "prompt_template": "Look around.", **fields}
        created: task_pb2.Task = await self.CreateTask(pb.CreateTaskRequest(**values))
        return created

    async def schedule(self, task_id: str = "", **fields: Any) -> schedule_pb2.Schedule:
        """Creates a schedule, of a new task by default, that fires at nine by default."""
        task_id = task_id or (await self.task()).id
        values = {"task_id": task_id, "spec": {"cron_expression": "0 9 * * *"}, **fields}
        created: schedule_pb2.Schedule = await self.CreateSchedule(pb.CreateScheduleRequest(**values))
        return created

    async def run(self, task_id: str = "", **fields: Any) -> run_pb2.TaskRun:
        """Runs a task, a new one by default."""
        task_id = task_id or (await self.task()).id
        made: run_pb2.TaskRun = await self.RunTask(pb.RunTaskRequest(task_id=task_id, **fields))
        return made

    async def get(self, task_id: str) -> task_pb2.Task:
        """Reads a task."""
        found: task_pb2.Task = await self.GetTask(pb.GetTaskRequest(task_id=task_id))
        return found


@dataclass
class Serving:
    """A running scheduler service, and what a test needs to look behind it."""

    service: SchedulerService
    database: Database
    tokens: AccessTokens
    channel: grpc.aio.Channel

    def client(self, caller: Caller | None = None, lifetime: timedelta = timedelta(hours=1)) -> Client:
        """A person with a token, somebody new by default."""
        caller = caller or a_caller()
        token = self.tokens.token(caller, lifetime)
        return Client(self.channel, (("authorization", f"Bearer {token}"),), caller)

    def colleague(self, of: Client, role: Role = Role.USER) -> Client:
        """Somebody else in the same organization."""
        return self.client(a_caller(organization_id=of.caller.organization_id, role=role))

    def demoted(self, client: Client) -> Client:
        """The same person with the role of a viewer."""
        caller = client.caller
        return self.client(
            a_caller(user_id=caller.user_id, organization_id=caller.organization_id, role=Role.VIEWER)
        )

    async def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        """All rows of a table, to compare."""
        async with self.database.system() as connection:
            found = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            return [dict(row._mapping) for row in found]


@asynccontextmanager
async def serving(databases: Copy, **options: Any) -> AsyncIterator[Serving]:
    """Runs a scheduler service on a database; its runs wait for a worker.

    Args:
        options: settings.
    """
    tokens = AccessTokens()
    async with AsyncExitStack() as stack:
        auth, _ = await stack.enter_async_context(
            running_server(
                register=[partial(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, Keys(tokens))],
                policies=_AUTH,
                domain="auth.aiagent",
            )
        )
        values: dict[str, Any] = {
            "scheduler_listen": "127.0.0.1:0",
            "scheduler_database_url": databases.url("scheduler_application"),
            "scheduler_system_database_url": databases.url("scheduler_system"),
            "auth_targets": f"127.0.0.1:{auth.port}",
            "scheduler_worker_places": 0,
            "scheduler_webhook_places": 0,
            "scheduler_encryption_key": base64url_encode(secrets.token_bytes(32)),
            "service_key": private_key_to_text(generate_private_key()),
        }
        settings = SchedulerSettings(_env_file=None, **{**values, **options})
        database = databases.open("scheduler")
        stack.push_async_callback(database.close)
        service = await build(settings)
        stack.push_async_callback(service.stop)
        await service.start()
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{service.port}", options=options)
        )
        yield Serving(service, database, tokens, channel)


async def field_of(call: Any) -> str:
    """Returns the field that a call was refused for."""
    error = await refusal(call)
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), error
    assert error.domain == "scheduler.aiagent"
    assert error.violations, error
    return error.violations[0].field
