"""`client.sessions`: sessions, their turns, what happened in them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.field_mask_pb2 import FieldMask

from aiagent.events.v1.session_event_pb2 import SessionEvent
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1 import session_service_pb2_grpc
from aiagent.session.v1.agent_options_pb2 import AgentOptions
from aiagent.session.v1.session_pb2 import Message, Session, ToolCall, Turn
from aiagent.session.v1.session_service_pb2 import QuerySessionResponse, WatchCursor, WhenBusy
from aiagent_client.connection import Connection, new_request_id
from aiagent_client.errors import ApiError
from aiagent_client.watching import Watch

if TYPE_CHECKING:
    from aiagent.session.v1.session_service_pb2_grpc import SessionServiceAsyncStub

FINAL_STATES = frozenset(
    {Turn.SUCCEEDED, Turn.FAILED, Turn.INTERRUPTED, Turn.TIMED_OUT, Turn.BUDGET_EXCEEDED}
)
# The server's answer to a wait may take this much longer than the wait, in seconds.
_WAIT_GRACE = 30.0
# One call waits this long at most, in seconds; longer waits are several calls, so that dead ones are noticed.
_WAIT_PIECE = 120
# A turn that waits for a person is answered with at once: it is asked for again after a pause, of seconds from and to.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Sessions:
    """Calls of the session service. All of them raise ApiError; lists page by themselves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: SessionServiceAsyncStub = session_service_pb2_grpc.SessionServiceStub(connection.channel)

    async def create(
        self,
        *,
        name: str = "",
        mode: Session.Mode.ValueType = Session.MODE_UNSPECIFIED,
        sdk_options: AgentOptions | None = None,
        labels: Mapping[str, str] | None = None,
        permission_timeout: timedelta | None = None,
        turn_timeout: timedelta | None = None,
        request_id: str = "",
    ) -> Session:
        """Creates a session with an empty workspace. No agent starts before the first message."""
        request = pb.CreateSessionRequest(
            name=name, mode=mode, sdk_options=sdk_options, labels=labels or {}, request_id=request_id
        )
        if permission_timeout is not None:
            request.permission_timeout.FromTimedelta(permission_timeout)
        if turn_timeout is not None:
            request.turn_timeout.FromTimedelta(turn_timeout)
        return await self._connection.call(self._stub.CreateSession, request)

    async def get(self, session_id: str) -> Session:
        """Returns a session. Raises NotFoundError with SESSION_NOT_FOUND."""
        return await self._connection.call(self._stub.GetSession, pb.GetSessionRequest(session_id=session_id))

    async def list(
        self,
        *,
        states: Sequence[Session.State.ValueType] = (),
        modes: Sequence[Session.Mode.ValueType] = (),
        name_contains: str = "",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Session]:
        """Yields the caller's sessions, the newest first."""
        request = pb.ListSessionsRequest(
            states=states, modes=modes, name_contains=name_contains, page_size=page_size
        )
        if created_after is not None:
            request.created_after.FromDatetime(created_after)
        if created_before is not None:
            request.created_before.FromDatetime(created_before)
        async for page in self._pages(self._stub.ListSessions, request):
            for session in page.sessions:
                yield session

    async def update(
        self,
        session_id: str,
        *,
        name: str | None = None,
        sdk_options: AgentOptions | None = None,
        labels: Mapping[str, str] | None = None,
        permission_timeout: timedelta | None = None,
        turn_timeout: timedelta | None = None,
        etag: str = "",
    ) -> Session:
        """Changes what is given; `sdk_options` and `labels` are replaced as a whole.

        Raises AbortedError with ETAG_MISMATCH when `etag` is not that of the current version.
        """
        request = pb.UpdateSessionRequest(session_id=session_id, etag=etag, update_mask=FieldMask())
        paths = request.update_mask.paths
        if name is not None:
            request.name = name
            paths.append("name")
        if sdk_options is not None:
            request.sdk_options.CopyFrom(sdk_options)
            paths.append("sdk_options")
        if labels is not None:
            request.labels.update(labels)
            paths.append("labels")
        if permission_timeout is not None:
            request.permission_timeout.FromTimedelta(permission_timeout)
            paths.append("permission_timeout")
        if turn_timeout is not None:
            request.turn_timeout.FromTimedelta(turn_timeout)
            paths.append("turn_timeout")
        return await self._connection.call(self._stub.UpdateSession, request)

    async def delete(self, session_id: str, *, etag: str = "", request_id: str = "") -> None:
        """Stops what runs and deletes the session with its log, its workspace and its files."""
        request = pb.DeleteSessionRequest(session_id=session_id, etag=etag, request_id=request_id)
        await self._connection.call(self._stub.DeleteSession, request)

    async def send(
        self,
        session_id: str,
        message: str,
        *,
        when_busy: WhenBusy.Policy.ValueType = WhenBusy.POLICY_UNSPECIFIED,
        request_id: str = "",
    ) -> Turn:
        """Sends a message, which starts a turn, and returns at once.

        Raises FailedPreconditionError with SESSION_BUSY or SESSION_STATE_INVALID, ResourceExhaustedError with
        TURN_QUEUE_FULL.
        """
        request = pb.SendMessageRequest(
            session_id=session_id, message=message, when_busy=when_busy, request_id=request_id
        )
        return await self._connection.call(self._stub.SendMessage, request)

    async def query(
        self,
        session_id: str,
        message: str,
        *,
        when_busy: WhenBusy.Policy.ValueType = WhenBusy.POLICY_UNSPECIFIED,
        wait_seconds: float = 600,
        wait_for_person: bool = False,
        request_id: str = "",
    ) -> QuerySessionResponse:
        """Sends a message and waits: for the turn's end, for a question to a person, or for `wait_seconds`.

        With `wait_for_person` a question does not end the wait. The turn goes on whatever becomes of this call.
        """
        # The same request id waits for the first call's turn: a long wait is several calls about one turn.
        request_id = request_id or new_request_id()

        async def ask(seconds: int) -> QuerySessionResponse:
            request = pb.QuerySessionRequest(
                session_id=session_id,
                message=message,
                when_busy=when_busy,
                wait_seconds=seconds,
                request_id=request_id,
            )
            return await self._connection.call(
                self._stub.QuerySession, request, timeout=seconds + _WAIT_GRACE
            )

        return await self._wait(ask, wait_seconds, wait_for_person)

    async def wait_turn(
        self, session_id: str, turn_id: str, *, wait_seconds: float = 600, wait_for_person: bool = False
    ) -> pb.WaitTurnResponse:
        """Waits for the turn's end, for a question to a person, or for `wait_seconds`."""

        async def ask(seconds: int) -> pb.WaitTurnResponse:
            request = pb.WaitTurnRequest(session_id=session_id, turn_id=turn_id, wait_seconds=seconds)
            return await self._connection.call(self._stub.WaitTurn, request, timeout=seconds + _WAIT_GRACE)

        return await self._wait(ask, wait_seconds, wait_for_person)

    async def get_turn(self, session_id: str, turn_id: str) -> Turn:
        """Returns a turn. Raises NotFoundError with TURN_NOT_FOUND."""
        request = pb.GetTurnRequest(session_id=session_id, turn_id=turn_id)
        return await self._connection.call(self._stub.GetTurn, request)

    async def turns(
        self, session_id: str, *, states: Sequence[Turn.State.ValueType] = (), page_size: int = 0
    ) -> AsyncIterator[Turn]:
        """Yields a session's turns, the newest first."""
        request = pb.ListTurnsRequest(session_id=session_id, states=states, page_size=page_size)
        async for page in self._pages(self._stub.ListTurns, request):
            for turn in page.turns:
                yield turn

    async def interrupt(
        self, session_id: str, *, turn_id: str = "", reason: str = "", request_id: str = ""
    ) -> Turn:
        """Stops a turn, the current one if none is named; returns when the wish is stored.

        Raises FailedPreconditionError with TURN_ENDED.
        """
        request = pb.InterruptTurnRequest(
            session_id=session_id, turn_id=turn_id, reason=reason, request_id=request_id
        )
        return await self._connection.call(self._stub.InterruptTurn, request)

    def watch(
        self,
        session_id: str,
        *,
        cursor: WatchCursor | int | None = None,
        exclude_deltas: bool = False,
        until_idle: bool = False,
        give_up_after: float = 300.0,
        on_reconnect: Callable[[ApiError | None], None] | None = None,
    ) -> Watch:
        """Follows a session from `cursor` on: a stored cursor, or the sequence of the last event already seen.

        Without one it begins at the session's beginning. `until_idle` ends it when all that happened so far was
        told and no turn is queued, running or waiting. See Watch.
        """
        return Watch(
            self._connection,
            self._stub,
            session_id,
            cursor=WatchCursor(sequence=cursor) if isinstance(cursor, int) else cursor,
            exclude_deltas=exclude_deltas,
            until_idle=until_idle,
            give_up_after=give_up_after,
            on_reconnect=on_reconnect,
        )

    async def messages(
        self,
        session_id: str,
        *,
        turn_id: str = "",
        roles: Sequence[Message.Role.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[Message]:
        """Yields a session's messages in order."""
        request = pb.ListMessagesRequest(
            session_id=session_id, turn_id=turn_id, roles=roles, page_size=page_size
        )
        async for page in self._pages(self._stub.ListMessages, request):
            for message in page.messages:
                yield message

    async def tool_calls(
        self,
        session_id: str,
        *,
        turn_id: str = "",
        tool_name: str = "",
        states: Sequence[ToolCall.State.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[ToolCall]:
        """Yields a session's tool calls in order."""
        request = pb.ListToolCallsRequest(
            session_id=session_id, turn_id=turn_id, tool_name=tool_name, states=states, page_size=page_size
        )
        async for page in self._pages(self._stub.ListToolCalls, request):
            for call in page.tool_calls:
                yield call

    async def events(
        self, session_id: str, *, after_sequence: int = 0, turn_id: str = "", page_size: int = 0
    ) -> AsyncIterator[SessionEvent]:
        """Yields a session's event log in order."""
        request = pb.ListEventsRequest(
            session_id=session_id, after_sequence=after_sequence, turn_id=turn_id, page_size=page_size
        )
        async for page in self._pages(self._stub.ListEvents, request):
            for event in page.events:
                yield event

    async def read_content(self, session_id: str, content_id: str) -> AsyncIterator[bytes]:
        """Yields a text that was too large for the event log, as pieces of UTF-8."""
        request = pb.ReadEventContentRequest(session_id=session_id, content_id=content_id)
        async for piece in self._connection.stream(
            lambda metadata: self._stub.ReadEventContent(request, metadata=metadata), silence=60
        ):
            yield piece.body.data

    async def _pages(self, method: Any, request: Any) -> AsyncIterator[Any]:
        while True:
            page = await self._connection.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _wait[AnswerT: (QuerySessionResponse, pb.WaitTurnResponse)](
        self, ask: Callable[[int], Awaitable[AnswerT]], wait_seconds: float, wait_for_person: bool
    ) -> AnswerT:
        clock = asyncio.get_running_loop().time
        end = clock() + wait_seconds
        pause = _FIRST_PAUSE
        while True:
            asked = clock()
            piece = max(0, min(_WAIT_PIECE, math.ceil(end - asked)))
            answer = await ask(piece)
            state = answer.turn.state
            left = end - clock()
            # The server waits for whole seconds; for less than half of one it is not asked again.
            if state in FINAL_STATES or left < 0.5 or (state == Turn.WAITING and not wait_for_person):
                return answer
            if clock() - asked < piece / 2:
                await asyncio.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE
