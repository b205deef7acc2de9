"""A registered user of the running suite, by gRPC through the public port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import (
    agent_options_pb2,
    permission_service_pb2,
    permission_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    workspace_service_pb2_grpc,
)

PASSWORD = "correct horse battery"
OPTIONS = [("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)]


@dataclass
class User:
    """A user with a token, and stubs that send it."""

    base_url: str
    channel: grpc.aio.Channel
    email: str = field(default_factory=lambda: f"u{uuid4().hex[:12]}@example.com")
    access_token: str = ""
    refresh_token: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.access_token}"),)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.access_token}"}

    def http(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client for the JSON interface."""
        return httpx.AsyncClient(
            base_url=self.base_url, headers=self.headers, timeout=60, trust_env=False, **options
        )

    async def sign_up(self) -> None:
        """Registers and logs in."""
        auth = auth_service_pb2_grpc.AuthServiceStub(self.channel)
        await auth.Register(
            auth_service_pb2.RegisterRequest(
                email=self.email, username=self.email.split("@")[0], password=PASSWORD, full_name="A User"
            )
        )
        tokens = await auth.Login(auth_service_pb2.LoginRequest(email=self.email, password=PASSWORD))
        self.access_token, self.refresh_token = tokens.access_token, tokens.refresh_token

    @property
    def sessions(self) -> Any:
        return session_service_pb2_grpc.SessionServiceStub(self.channel)

    @property
    def permissions(self) -> Any:
        return permission_service_pb2_grpc.PermissionServiceStub(self.channel)

    @property
    def workspaces(self) -> Any:
        return workspace_service_pb2_grpc.WorkspaceServiceStub(self.channel)

    async def call(self, method: Callable[..., Any], request: Any, timeout: float = 60) -> Any:
        """Calls with the user's token."""
        return await method(request, metadata=self.metadata, timeout=timeout)

    async def create(self, mode: str = "BYPASS_PERMISSIONS", **options: Any) -> str:
        """Creates a session and returns its id."""
        request = session_service_pb2.CreateSessionRequest(name="a test")
        request.sdk_options.permission_mode = agent_options_pb2.AgentOptions.PermissionMode.Value(mode)
        for name, value in options.items():
            if isinstance(value, list):
                getattr(request.sdk_options, name).extend(value)
            elif name in ("permission_timeout", "turn_timeout"):
                getattr(request, name).FromMilliseconds(int(value * 1000))
            else:
                setattr(request.sdk_options, name, value)
        return (await self.call(self.sessions.CreateSession, request)).id

    async def send(self, session_id: str, message: str, **fields: Any) -> session_pb2.Turn:
        """Sends a message and returns the turn."""
        return await self.call(
            self.sessions.SendMessage,
            session_service_pb2.SendMessageRequest(session_id=session_id, message=message, **fields),
        )

    async def wait(self, session_id: str, turn_id: str, seconds: int = 60) -> session_pb2.Turn:
        """Waits for a turn's end or for a question."""
        answer = await self.call(
            self.sessions.WaitTurn,
            session_service_pb2.WaitTurnRequest(session_id=session_id, turn_id=turn_id, wait_seconds=seconds),
            timeout=seconds + 10,
        )
        return answer.turn

    async def run(self, session_id: str, message: str, seconds: int = 60) -> session_pb2.Turn:
        """Sends a message and waits for the end of its turn."""
        turn = await self.send(session_id, message)
        return await self.wait(session_id, turn.id, seconds)

    def watch(self, session_id: str, cursor: Any = None, **fields: Any) -> Any:
        """Opens the live stream."""
        return self.sessions.WatchSession(
            session_service_pb2.WatchSessionRequest(session_id=session_id, cursor=cursor, **fields),
            metadata=self.metadata,
        )

    async def events(self, session_id: str) -> list[session_event_pb2.SessionEvent]:
        """The whole log, page by page."""
        found: list[session_event_pb2.SessionEvent] = []
        token = ""
        while True:
            page = await self.call(
                self.sessions.ListEvents,
                session_service_pb2.ListEventsRequest(
                    session_id=session_id, page_size=1000, page_token=token
                ),
            )
            found.extend(page.events)
            token = page.next_page_token
            if not token:
                return found

    async def asked(self, session_id: str, turn_id: str) -> session_pb2.PermissionRequest:
        """Waits for the turn's question to a person."""
        turn = await self.wait(session_id, turn_id)
        assert turn.state == session_pb2.Turn.WAITING, turn
        page = await self.call(
            self.permissions.ListPermissionRequests,
            permission_service_pb2.ListPermissionRequestsRequest(
                session_id=session_id, states=[session_pb2.PermissionRequest.PENDING]
            ),
        )
        return page.permission_requests[0]

    async def answer(self, request: session_pb2.PermissionRequest, *, allow: bool, reason: str = "") -> Any:
        """Answers a question."""
        decisions = permission_service_pb2.ResolvePermissionRequest
        return await self.call(
            self.permissions.ResolvePermission,
            decisions(
                session_id=request.session_id,
                permission_request_id=request.id,
                decision=decisions.ALLOW_ONCE if allow else decisions.DENY,
                reason=reason,
            ),
        )


def state_name(turn: session_pb2.Turn) -> str:
    """The turn's state as a word."""
    return session_pb2.Turn.State.Name(turn.state)


def details(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Reason, and violated fields with their descriptions, of a failed call."""
    reason, fields = "", {}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                if detail.Unpack(info):
                    reason = info.reason
                elif detail.Unpack(bad):
                    fields = {violation.field: violation.description for violation in bad.field_violations}
    return reason, fields


@pytest_asyncio.fixture
async def channel(suite: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the public port."""
    async with grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS) as opened:
        yield opened


@pytest_asyncio.fixture
async def user(suite: Any, channel: grpc.aio.Channel) -> User:
    """A fresh user."""
    made = User(suite.base_url, channel)
    await made.sign_up()
    return made


@pytest_asyncio.fixture
async def stranger(suite: Any, channel: grpc.aio.Channel) -> User:
    """Another fresh user."""
    made = User(suite.base_url, channel)
    await made.sign_up()
    return made
