"""A session service whose answers a test chooses: every shape of call that the contract has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from aiagent.session.v1 import session_pb2, session_service_pb2, workspace_service_pb2
from aiagent.session.v1.session_service_pb2_grpc import (
    SessionServiceServicer,
    add_SessionServiceServicer_to_server,
)
from aiagent.session.v1.workspace_service_pb2_grpc import (
    WorkspaceServiceServicer,
    add_WorkspaceServiceServicer_to_server,
)
from services.kernel.grpc import PUBLIC, USER, services, user_or_services

SESSION_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
_SESSION = "/aiagent.session.v1.SessionService"
_WORKSPACE = "/aiagent.session.v1.WorkspaceService"
POLICIES = {
    f"{_SESSION}/CreateSession": PUBLIC,
    f"{_SESSION}/GetSession": USER,
    f"{_SESSION}/SendMessage": user_or_services("scheduler"),
    f"{_SESSION}/WatchSession": USER,
    f"{_SESSION}/InterruptTurn": services("executor"),
    f"{_WORKSPACE}/UploadWorkspace": USER,
    f"{_WORKSPACE}/DownloadWorkspace": USER,
}


class Sessions(SessionServiceServicer, WorkspaceServiceServicer):
    """Calls `behave` for every unary call, and `stream` for every response stream."""

    def __init__(self) -> None:
        self.behave: Callable[[Any, Any], Awaitable[None]] = _nothing
        self.stream: Callable[[Any, Any], AsyncGenerator[Any]] = _no_events
        self.received: list[Any] = []

    def register(self, server: Any) -> None:
        add_SessionServiceServicer_to_server(self, server)
        add_WorkspaceServiceServicer_to_server(self, server)

    async def CreateSession(self, request: Any, context: Any) -> Any:
        await self.behave(request, context)
        return session_pb2.Session(id=SESSION_ID)

    GetSession = SendMessage = InterruptTurn = DeleteSession = CreateSession

    async def WatchSession(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(self.stream(request, context)) as responses:
            async for response in responses:
                yield response

    async def UploadWorkspace(self, requests: Any, context: Any) -> Any:
        async for request in requests:
            self.received.append(request)
        await self.behave(None, context)
        return workspace_service_pb2.UploadWorkspaceResponse()

    async def DownloadWorkspace(self, request: Any, context: Any) -> None:
        async for response in self.stream(request, context):
            await context.write(response)


async def _nothing(_request: Any, _context: Any) -> None:
    await asyncio.sleep(0)


async def _no_events(_request: Any, _context: Any) -> AsyncIterator[Any]:
    for _ in ():
        yield session_service_pb2.WatchSessionResponse()
