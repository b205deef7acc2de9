"""A real gRPC server whose services do what a test says: the client's other side, without a database or an agent."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import Any
from uuid import uuid4

import grpc
from google.api.httpbody_pb2 import HttpBody

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc, user_pb2
from aiagent.events.v1 import session_event_pb2 as events
from aiagent.scheduler.v1 import scheduler_service_pb2_grpc, webhook_pb2, webhook_service_pb2_grpc
from aiagent.session.v1 import (
    permission_service_pb2,
    permission_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from .scripted_scheduler import ScriptedScheduler
from .scripted_session import Agent, Fault, Item, Log, echo
from .scripted_webhooks import ScriptedWebhooks

PASSWORD = "correct horse battery"


class ScriptedServer(
    auth_service_pb2_grpc.AuthServiceServicer,
    session_service_pb2_grpc.SessionServiceServicer,
    permission_service_pb2_grpc.PermissionServiceServicer,
    workspace_service_pb2_grpc.WorkspaceServiceServicer,
    ScriptedScheduler,
    ScriptedWebhooks,
):
    """All services in one object.

    `faults[method]` are taken one per call, None for a call that goes well. `calls[method]` are the requests seen.
    """

    def __init__(self) -> None:
        ScriptedScheduler.__init__(self)
        self.deliveries: dict[str, webhook_pb2.WebhookDelivery] = {}
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.silent: set[str] = set()  # methods that never answer
        self.agent: Agent = echo
        self.logs: dict[str, Log] = {}
        self.expires_in = 3600
        self.stops_at_once = True
        self.valid_access: set[str] = set()
        self.refresh_tokens: set[str] = set()
        self.known_requests: dict[str, session_pb2.Turn] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)]
        )
        auth_service_pb2_grpc.add_AuthServiceServicer_to_server(self, server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(self, server)
        permission_service_pb2_grpc.add_PermissionServiceServicer_to_server(self, server)
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(self, server)
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(self, server)
        webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.stop()

    def new_log(self, name: str = "", session_id: str = "") -> Log:
        session = session_pb2.Session(
            id=session_id or str(uuid4()), name=name, state="CREATED", mode="INTERACTIVE"
        )
        session.sdk_options.model = "claude-sonnet-4-5"
        session.create_time.GetCurrentTime()
        self.logs[session.id] = Log(session)
        return self.logs[session.id]

    async def _enter(self, method: str, request: Any, context: Any, *, public: bool = False) -> Fault | None:
        metadata = dict(context.invocation_metadata())
        self.calls[method].append(request)
        self.metadata[method].append(metadata)
        faults = self.faults[method]
        fault = faults.pop(0) if faults else None
        if fault is not None and not fault.after:
            await fault.abort(context)
        if method in self.silent:
            await asyncio.Event().wait()
        token = metadata.get("authorization", "").removeprefix("Bearer ")
        if not public and token not in self.valid_access:
            await Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", "the token is not valid").abort(
                context
            )
        return fault

    async def _log(self, session_id: str, context: Any) -> Log:
        if session_id not in self.logs:
            await Fault(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", "there is no such session").abort(
                context
            )
        return self.logs[session_id]

    def tokens(self) -> dict[str, Any]:
        number = next(self._numbers)
        self.valid_access.add(f"access-{number}")
        self.refresh_tokens.add(f"refresh-{number}")
        return {
            "access_token": f"access-{number}",
            "refresh_token": f"refresh-{number}",
            "token_type": "bearer",
            "expires_in": self.expires_in,
            "refresh_expires_in": 7 * 86400,
        }

    # auth

    async def Register(self, request: Any, context: Any) -> Any:
        await self._enter("Register", request, context, public=True)
        return user_pb2.User(id=str(uuid4()), email=request.email, username=request.username, role="USER")

    async def Login(self, request: Any, context: Any) -> Any:
        await self._enter("Login", request, context, public=True)
        if request.password != PASSWORD:
            await Fault(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID", "wrong").abort(context)
        return auth_service_pb2.LoginResponse(**self.tokens())

    async def RefreshToken(self, request: Any, context: Any) -> Any:
        await self._enter("RefreshToken", request, context, public=True)
        if request.refresh_token not in self.refresh_tokens:
            await Fault(grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID", "unknown").abort(context)
        self.refresh_tokens.discard(request.refresh_token)
        return auth_service_pb2.RefreshTokenResponse(**self.tokens())

    async def Logout(self, request: Any, context: Any) -> Any:
        await self._enter("Logout", request, context, public=True)
        self.refresh_tokens.discard(request.refresh_token)
        return auth_service_pb2.LogoutResponse()

    async def GetMe(self, request: Any, context: Any) -> Any:
        await self._enter("GetMe", request, context)
        return user_pb2.User(
            id=str(uuid4()), email="ada@example.org", username="ada", role="USER", full_name="Ada L."
        )

    # sessions

    async def CreateSession(self, request: Any, context: Any) -> Any:
        await self._enter("CreateSession", request, context)
        log = self.new_log(request.name)
        log.session.sdk_options.MergeFrom(request.sdk_options)
        return log.session

    async def GetSession(self, request: Any, context: Any) -> Any:
        await self._enter("GetSession", request, context)
        return (await self._log(request.session_id, context)).session

    async def ListSessions(self, request: Any, context: Any) -> Any:
        await self._enter("ListSessions", request, context)
        found = [
            log.session for log in reversed(self.logs.values()) if request.name_contains in log.session.name
        ]
        start, size = int(request.page_token or 0), request.page_size or 50
        more = str(start + size) if start + size < len(found) else ""
        return session_service_pb2.ListSessionsResponse(
            sessions=found[start : start + size], next_page_token=more
        )

    async def DeleteSession(self, request: Any, context: Any) -> Any:
        await self._enter("DeleteSession", request, context)
        await self._log(request.session_id, context)
        del self.logs[request.session_id]
        return session_service_pb2.DeleteSessionResponse()

    async def _begin(self, request: Any, context: Any) -> session_pb2.Turn:
        if request.request_id in self.known_requests:
            return self.known_requests[request.request_id]
        log = await self._log(request.session_id, context)
        turn = session_pb2.Turn(id=str(uuid4()), session_id=request.session_id, number=len(log.turns) + 1)
        before = [one for one in log.turns if one.state <= session_pb2.Turn.WAITING]
        turn.state = session_pb2.Turn.QUEUED if before else session_pb2.Turn.RUNNING
        turn.queue_position = len(before)
        turn.first_sequence = log.sequence + 1
        turn.message.text = request.message
        log.turns.append(turn)
        log.running = True
        self.known_requests[request.request_id] = turn
        message = events.UserMessage(message_id=str(uuid4()))
        message.content.text = request.message
        await log.event(turn.id, user_message=message)
        task = asyncio.create_task(self._work(log, turn, before, self.agent))
        self.tasks.add(task)
        return turn

    async def _work(self, log: Log, turn: session_pb2.Turn, before: list[Any], agent: Agent) -> None:
        if before:
            async with log.grown:
                await log.grown.wait_for(lambda: all(one.state > session_pb2.Turn.WAITING for one in before))
            turn.state, turn.queue_position, log.running = session_pb2.Turn.RUNNING, 0, True
            await log.event(turn.id, attempt_started=events.AttemptStarted(attempt=1))
        await agent(log, turn.id)

    async def SendMessage(self, request: Any, context: Any) -> Any:
        await self._enter("SendMessage", request, context)
        return await self._begin(request, context)

    async def QuerySession(self, request: Any, context: Any) -> Any:
        await self._enter("QuerySession", request, context)
        turn = await self._begin(request, context)
        log = self.logs[request.session_id]
        await self._settled(log, turn, request.wait_seconds)
        texts = [
            item.payload.assistant_message.content.text
            for item in log.items
            if isinstance(item, events.SessionEvent) and item.payload.HasField("assistant_message")
        ]
        pending = [
            found for found in log.requests.values() if found.state == session_pb2.PermissionRequest.PENDING
        ]
        return session_service_pb2.QuerySessionResponse(
            turn=turn, content=texts[-1] if texts else "", permission_requests=pending
        )

    async def WaitTurn(self, request: Any, context: Any) -> Any:
        await self._enter("WaitTurn", request, context)
        log = await self._log(request.session_id, context)
        turn = next(turn for turn in log.turns if turn.id == request.turn_id)
        await self._settled(log, turn, request.wait_seconds)
        return session_service_pb2.WaitTurnResponse(turn=turn)

    async def _settled(self, log: Log, turn: session_pb2.Turn, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds), log.grown:
                await log.grown.wait_for(lambda: turn.state >= session_pb2.Turn.WAITING)
        except TimeoutError:
            return

    async def InterruptTurn(self, request: Any, context: Any) -> Any:
        await self._enter("InterruptTurn", request, context)
        log = await self._log(request.session_id, context)
        turn = log.turns[-1]
        await log.event(turn.id, interrupt_requested=events.InterruptRequested(reason=request.reason))
        if not self.stops_at_once:
            self.tasks.add(asyncio.create_task(self._stop_after_a_look(log, turn)))
            return turn
        for task in self.tasks:
            task.cancel()
        await log.end(turn.id, "INTERRUPTED")
        return turn

    async def _stop_after_a_look(self, log: Log, turn: session_pb2.Turn) -> None:
        while not self.calls["WaitTurn"]:
            await asyncio.sleep(0.01)
        await log.end(turn.id, "INTERRUPTED")

    async def WatchSession(self, request: Any, context: Any) -> Any:
        fault = await self._enter("WatchSession", request, context)
        log = await self._log(request.session_id, context)
        sent = position = 0
        while True:
            while position < len(log.items):
                if fault is not None and sent >= fault.after:
                    await fault.abort(context)
                item = log.items[position]
                position += 1
                response = self._response(log, item, request)
                if response is not None:
                    yield response
                    sent += 1
            if fault is not None and sent >= fault.after:
                await fault.abort(context)
            if request.until_idle and not log.running:
                return
            async with log.grown:
                while len(log.items) == position:
                    await log.grown.wait()

    def _response(self, log: Log, item: Item, request: Any) -> Any:
        response = session_service_pb2.WatchSessionResponse(head_sequence=log.sequence)
        if isinstance(item, events.SessionEvent):
            if item.sequence <= request.cursor.sequence:
                return None
            response.items.add(event=item)
            return response
        if request.exclude_deltas:
            return None
        closed = any(
            isinstance(later, events.SessionEvent)
            and later.sequence <= request.cursor.sequence
            and later.turn_id == item.turn_id
            and later.payload.assistant_message.block == item.block
            for later in log.items
        )
        if closed:
            return None
        delta = session_service_pb2.TextDelta()
        delta.CopyFrom(item)
        at = request.cursor.delta
        if request.cursor.HasField("delta") and (at.turn_id, at.attempt, at.block) == (
            item.turn_id, item.attempt, item.block,
        ):  # fmt: skip
            cut = max(0, min(len(item.text), at.text_offset - item.text_offset))
            delta.text, delta.text_offset = item.text[cut:], item.text_offset + cut
            if not delta.text:
                return None
        response.items.add(delta=delta)
        return response

    async def ListMessages(self, request: Any, context: Any) -> Any:
        await self._enter("ListMessages", request, context)
        log = await self._log(request.session_id, context)
        found = []
        for item in log.items:
            if isinstance(item, events.SessionEvent) and item.payload.HasField("user_message"):
                found.append(
                    session_pb2.Message(role="USER", type="TEXT", content=item.payload.user_message.content)
                )
            if isinstance(item, events.SessionEvent) and item.payload.HasField("assistant_message"):
                said = item.payload.assistant_message
                found.append(session_pb2.Message(role="ASSISTANT", type="TEXT", content=said.content))
        return session_service_pb2.ListMessagesResponse(messages=found)

    async def ListToolCalls(self, request: Any, context: Any) -> Any:
        await self._enter("ListToolCalls", request, context)
        log = await self._log(request.session_id, context)
        calls = [
            session_pb2.ToolCall(
                id=item.payload.tool_use.tool_use_id, tool_use=item.payload.tool_use, state="RUNNING"
            )
            for item in log.items
            if isinstance(item, events.SessionEvent) and item.payload.HasField("tool_use")
        ]
        return session_service_pb2.ListToolCallsResponse(tool_calls=calls)

    # permissions

    async def ListPermissionRequests(self, request: Any, context: Any) -> Any:
        await self._enter("ListPermissionRequests", request, context)
        logs = [self.logs[request.session_id]] if request.session_id else list(self.logs.values())
        found = [
            asked
            for log in logs
            for asked in log.requests.values()
            if not request.states or asked.state in request.states
        ]
        return permission_service_pb2.ListPermissionRequestsResponse(permission_requests=found)

    async def ResolvePermission(self, request: Any, context: Any) -> Any:
        await self._enter("ResolvePermission", request, context)
        log = await self._log(request.session_id, context)
        asked = log.requests[request.permission_request_id]
        if asked.state != session_pb2.PermissionRequest.PENDING:
            await Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "PERMISSION_REQUEST_RESOLVED",
                "it was answered before",
                metadata={"state": session_pb2.PermissionRequest.State.Name(asked.state)},
            ).abort(context)
        allowed = request.decision == permission_service_pb2.ResolvePermissionRequest.ALLOW_ONCE
        await log.resolve(asked.id, "ALLOWED" if allowed else "DENIED", request.reason)
        return asked

    # workspaces

    async def UploadWorkspace(self, requests: Any, context: Any) -> Any:
        data, first = b"", None
        async for request in requests:
            first = first or request
            data += request.archive.data
        await self._enter("UploadWorkspace", first, context)
        log = await self._log(first.session_id, context)
        log.workspace = data
        return workspace_service_pb2.UploadWorkspaceResponse(file_count=1, size_bytes=len(data))

    async def DownloadWorkspace(self, request: Any, context: Any) -> Any:
        await self._enter("DownloadWorkspace", request, context)
        log = await self._log(request.session_id, context)
        for start in range(0, len(log.workspace), 1000):
            body = HttpBody(content_type="application/gzip", data=log.workspace[start : start + 1000])
            yield workspace_service_pb2.DownloadWorkspaceResponse(archive=body)
