"""`SessionService`: sessions, turns and what they leave behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from aiagent.session.v1 import session_pb2, session_service_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceServicer
from services.kernel.context import current_caller
from services.kernel.paging import MAX_PAGE_SIZE
from services.session import codec
from services.session.api import mapping
from services.session.api.pages import DEFAULT_EVENTS, page
from services.session.api.watch import WatchApi
from services.session.domain.errors import invalid_request
from services.session.usecases.ports import SessionFilter
from services.session.usecases.sessions import CreateSession, Sessions, UpdateSession
from services.session.usecases.turns import SendMessage, Turns, WhenBusy
from services.session.usecases.workspaces import WorkspaceUseCases

_MODES = session_pb2.Session.Mode
_WHEN_BUSY = pb.WhenBusy.Policy


def _options(message: Message) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    except json_format.SerializeToJsonError:
        # JSON has no infinity, and nothing else of the options can hold one.
        raise invalid_request("sdk_options.output_schema", "must have finite numbers") from None


def _timedelta(message: Message, field: str) -> Any:
    value: Duration = getattr(message, field)
    return value.ToTimedelta() if message.HasField(field) else None


def _policy(request: pb.SendMessageRequest | pb.QuerySessionRequest) -> WhenBusy:
    name = _WHEN_BUSY.Name(request.when_busy)
    return WhenBusy.ENQUEUE if name == "POLICY_UNSPECIFIED" else WhenBusy(name)


class SessionServicer(SessionServiceServicer):
    """The methods of `aiagent.session.v1.SessionService`."""

    def __init__(
        self, sessions: Sessions, turns: Turns, workspaces: WorkspaceUseCases, watch: WatchApi
    ) -> None:
        """Args: the use cases."""
        self._sessions = sessions
        self._turns = turns
        self._workspaces = workspaces
        self._watch = watch

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> session_pb2.Session:
        """Creates a session."""
        created = await self._sessions.create(
            current_caller(),
            CreateSession(
                name=request.name,
                mode=_MODES.Name(request.mode) if request.mode else "INTERACTIVE",
                sdk_options=_options(request.sdk_options),
                labels=dict(request.labels),
                permission_timeout=_timedelta(request, "permission_timeout"),
                turn_timeout=_timedelta(request, "turn_timeout"),
                request_id=request.request_id,
            ),
        )
        return mapping.session(created)

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> session_pb2.Session:
        """Returns a session."""
        return mapping.session(await self._sessions.get(current_caller(), UUID(request.session_id)))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """Lists the caller's sessions."""
        caller = current_caller()
        wanted = SessionFilter(
            user_id=caller.user_id,
            states=tuple(session_pb2.Session.State.Name(state) for state in request.states),
            modes=tuple(_MODES.Name(mode) for mode in request.modes),
            name_contains=request.name_contains,
            created_after=mapping.optional_time(request, "created_after"),
            created_before=mapping.optional_time(request, "created_before"),
        )
        sessions, token = await page(
            caller,
            ("ListSessions", wanted),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._sessions.list_page(caller, wanted, before, limit),
            lambda row: row.id,
            mapping.session,
        )
        return pb.ListSessionsResponse(sessions=sessions, next_page_token=token)

    async def UpdateSession(self, request: pb.UpdateSessionRequest, context: Any) -> session_pb2.Session:
        """Changes a session."""
        values: dict[str, Any] = {}
        for field in request.update_mask.paths:
            if "." in field:
                raise invalid_request("update_mask", f"{field}: names a part; fields are changed as a whole")
            if field == "sdk_options":
                values[field] = _options(request.sdk_options)
            elif field == "labels":
                values[field] = dict(request.labels)
            elif field == "name":
                values[field] = request.name
            else:
                value = _timedelta(request, field)
                if value is None:
                    raise invalid_request(field, "is named by update_mask and missing")
                values[field] = value
        change = UpdateSession(UUID(request.session_id), values, request.etag, request.request_id)
        return mapping.session(await self._sessions.update(current_caller(), change))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Any) -> pb.DeleteSessionResponse:
        """Deletes a session."""
        await self._sessions.delete(
            current_caller(), UUID(request.session_id), request.etag, request.request_id
        )
        return pb.DeleteSessionResponse()

    async def SendMessage(self, request: pb.SendMessageRequest, context: Any) -> session_pb2.Turn:
        """Accepts a message."""
        sent = SendMessage(UUID(request.session_id), request.message, _policy(request), request.request_id)
        return mapping.turn(await self._turns.send(current_caller(), sent))

    async def QuerySession(self, request: pb.QuerySessionRequest, context: Any) -> pb.QuerySessionResponse:
        """Sends a message and waits."""
        caller = current_caller()
        session_id = UUID(request.session_id)
        sent = SendMessage(session_id, request.message, _policy(request), request.request_id)
        # Before the message is taken: a refusal must not have started a turn.
        with self._watch.place(caller, request):
            turn = await self._turns.send(caller, sent)
            waited = await self._watch.wait(
                caller,
                session_id,
                turn.id,
                request.wait_seconds if request.HasField("wait_seconds") else None,
            )
        calls, _ = await page(
            caller,
            ("QuerySession", session_id, turn.id),
            MAX_PAGE_SIZE,
            "",
            int,
            lambda after, limit: self._turns.list_tool_calls(
                caller, session_id, turn.id, "", (), after or 0, limit
            ),
            lambda row: row.sequence,
            mapping.tool_call,
        )
        result = waited.turn.result
        return pb.QuerySessionResponse(
            turn=mapping.turn(waited.turn),
            content=result.text if result is not None else "",
            tool_calls=calls,
            permission_requests=map(mapping.permission_request, waited.permission_requests),
            metrics=mapping.metrics(waited.turn, waited.now),
        )

    async def GetTurn(self, request: pb.GetTurnRequest, context: Any) -> session_pb2.Turn:
        """Returns a turn."""
        return mapping.turn(
            await self._turns.get(current_caller(), UUID(request.session_id), UUID(request.turn_id))
        )

    async def WaitTurn(self, request: pb.WaitTurnRequest, context: Any) -> pb.WaitTurnResponse:
        """Waits for a turn."""
        caller = current_caller()
        with self._watch.place(caller, request):
            waited = await self._watch.wait(
                caller,
                UUID(request.session_id),
                UUID(request.turn_id),
                request.wait_seconds if request.HasField("wait_seconds") else None,
            )
        return pb.WaitTurnResponse(
            turn=mapping.turn(waited.turn),
            permission_requests=map(mapping.permission_request, waited.permission_requests),
        )

    async def ListTurns(self, request: pb.ListTurnsRequest, context: Any) -> pb.ListTurnsResponse:
        """Lists turns."""
        caller, session_id = current_caller(), UUID(request.session_id)
        states = [session_pb2.Turn.State.Name(state) for state in request.states]
        turns, token = await page(
            caller,
            ("ListTurns", session_id, states),
            request.page_size,
            request.page_token,
            int,
            lambda before, limit: self._turns.list_page(caller, session_id, states, before, limit),
            lambda row: row.number,
            mapping.turn,
        )
        return pb.ListTurnsResponse(turns=turns, next_page_token=token)

    async def InterruptTurn(self, request: pb.InterruptTurnRequest, context: Any) -> session_pb2.Turn:
        """Stops a turn."""
        return mapping.turn(
            await self._turns.interrupt(
                current_caller(),
                UUID(request.session_id),
                mapping.optional_uuid(request.turn_id),
                request.reason,
                request.request_id,
            )
        )

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Any
    ) -> AsyncIterator[session_service_pb2.WatchSessionResponse]:
        """Streams what happens."""
        async for response in self._watch.stream(request, context):
            yield response

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Any) -> pb.ListMessagesResponse:
        """Lists messages."""
        caller, session_id = current_caller(), UUID(request.session_id)
        turn_id = mapping.optional_uuid(request.turn_id)
        roles = [session_pb2.Message.Role.Name(role) for role in request.roles]
        messages, token = await page(
            caller,
            ("ListMessages", session_id, turn_id, roles),
            request.page_size,
            request.page_token,
            int,
            lambda after, limit: self._turns.list_messages(
                caller, session_id, turn_id, roles, after or 0, limit
            ),
            lambda row: row.sequence,
            mapping.message,
        )
        return pb.ListMessagesResponse(messages=messages, next_page_token=token)

    async def ListToolCalls(self, request: pb.ListToolCallsRequest, context: Any) -> pb.ListToolCallsResponse:
        """Lists tool calls."""
        caller, session_id = current_caller(), UUID(request.session_id)
        turn_id = mapping.optional_uuid(request.turn_id)
        states = [session_pb2.ToolCall.State.Name(state) for state in request.states]
        tool_calls, token = await page(
            caller,
            ("ListToolCalls", session_id, turn_id, request.tool_name, states),
            request.page_size,
            request.page_token,
            int,
            lambda after, limit: self._turns.list_tool_calls(
                caller, session_id, turn_id, request.tool_name, states, after or 0, limit
            ),
            lambda row: row.sequence,
            mapping.tool_call,
        )
        return pb.ListToolCallsResponse(tool_calls=tool_calls, next_page_token=token)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        """Lists events."""
        caller, session_id = current_caller(), UUID(request.session_id)
        turn_id = mapping.optional_uuid(request.turn_id)
        events, token = await page(
            caller,
            ("ListEvents", session_id, turn_id, request.after_sequence),
            request.page_size,
            request.page_token,
            int,
            lambda after, limit: self._turns.list_events(
                caller, session_id, turn_id, request.after_sequence if after is None else after, limit
            ),
            lambda row: row.sequence,
            codec.event,
            default=DEFAULT_EVENTS,
        )
        return pb.ListEventsResponse(events=events, next_page_token=token)

    async def ReadEventContent(
        self, request: pb.ReadEventContentRequest, context: Any
    ) -> AsyncIterator[pb.ReadEventContentResponse]:
        """Streams a large text."""
        kind = "text/plain; charset=utf-8"
        pieces = self._workspaces.read_content(
            current_caller(), UUID(request.session_id), UUID(request.content_id)
        )
        async with aclosing(pieces):
            async for piece in pieces:
                yield pb.ReadEventContentResponse(body=httpbody_pb2.HttpBody(content_type=kind, data=piece))
                kind = ""
