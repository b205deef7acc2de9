"""What callers read: single things and keyset pages, under row-level security."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.session.domain.entities import (
    Content,
    LogEvent,
    Message,
    PermissionRequest,
    Session,
    ToolCall,
    Turn,
)
from services.session.domain.errors import (
    content_not_found,
    permission_request_not_found,
    session_not_found,
    turn_not_found,
)
from services.session.store import event_log
from services.session.store.rows import message_of, permission_request_of, session_of, tool_call_of, turn_of
from services.session.store.tables import (
    event_contents,
    messages,
    permission_requests,
    session_heads,
    sessions,
    tool_calls,
    turns,
)
from services.session.usecases.ports import SessionFilter

_OPEN = ("QUEUED", "STARTING", "RUNNING", "WAITING")

_SESSION = sa.select(sessions, session_heads.c.last_sequence).join(
    session_heads, session_heads.c.session_id == sessions.c.id
)
# Built once: building it for each call costs more than running it.
_SESSION_BY_ID = _SESSION.where(
    sessions.c.id == sa.bindparam("session_id", type_=sessions.c.id.type), sessions.c.delete_time.is_(None)
)
_ahead = turns.alias("ahead")
_QUEUE_POSITION = sa.case(
    (
        turns.c.state == "QUEUED",
        sa.select(sa.func.count())
        .select_from(_ahead)
        .where(
            _ahead.c.session_id == turns.c.session_id,
            _ahead.c.number < turns.c.number,
            _ahead.c.state.in_(_OPEN),
        )
        .scalar_subquery(),
    ),
    else_=0,
)
_CALLS = (
    sa.select(sa.func.count())
    .select_from(tool_calls)
    .where(tool_calls.c.turn_id == turns.c.id)
    .scalar_subquery()
)
_TURN = sa.select(turns, _QUEUE_POSITION.label("queue_position"), _CALLS.label("tool_calls"))


class TenantReads:
    """The reading half of a caller's transaction; see `usecases.ports.SessionTransaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Args: connection: a tenant's transaction."""
        self._connection = connection

    async def _all(self, query: sa.Select[Any]) -> Sequence[Any]:
        rows: Sequence[Any] = (await self._connection.execute(query)).all()
        return rows

    async def _one(self, query: sa.Select[Any], parameters: Mapping[str, Any] | None = None) -> Any:
        return (await self._connection.execute(query, parameters)).one_or_none()

    async def get_session(self, session_id: UUID) -> Session:
        """Returns a session."""
        row = await self._one(_SESSION_BY_ID, {"session_id": session_id})
        if row is None:
            raise session_not_found(session_id)
        return session_of(row)

    async def list_sessions(self, wanted: SessionFilter, before: UUID | None, limit: int) -> list[Session]:
        """Returns sessions, the newest first."""
        query = _SESSION.where(sessions.c.delete_time.is_(None)).order_by(sessions.c.id.desc()).limit(limit)
        if wanted.user_id is not None:
            query = query.where(sessions.c.user_id == wanted.user_id)
        if before is not None:
            query = query.where(sessions.c.id < before)
        if wanted.states:
            query = query.where(sessions.c.state.in_(wanted.states))
        if wanted.modes:
            query = query.where(sessions.c.mode.in_(wanted.modes))
        if wanted.name_contains:
            query = query.where(sessions.c.name.icontains(wanted.name_contains, autoescape=True))
        if wanted.created_after is not None:
            query = query.where(sessions.c.create_time >= wanted.created_after)
        if wanted.created_before is not None:
            query = query.where(sessions.c.create_time < wanted.created_before)
        return [session_of(row) for row in await self._all(query)]

    async def get_turn(self, session_id: UUID, turn_id: UUID) -> Turn:
        """Returns a turn of a session the caller may see."""
        row = await self._one(_TURN.where(turns.c.id == turn_id, turns.c.session_id == session_id))
        if row is None:
            raise turn_not_found(turn_id)
        return turn_of(row)

    async def list_turns(
        self, session_id: UUID, states: Sequence[str], before: int | None, limit: int
    ) -> list[Turn]:
        """Returns turns, the newest first."""
        query = _TURN.where(turns.c.session_id == session_id).order_by(turns.c.number.desc()).limit(limit)
        if states:
            query = query.where(turns.c.state.in_(states))
        if before is not None:
            query = query.where(turns.c.number < before)
        return [turn_of(row) for row in await self._all(query)]

    async def open_turns(self, session_id: UUID) -> list[Turn]:
        """Returns the turns that are not over, in order."""
        query = _TURN.where(turns.c.session_id == session_id, turns.c.state.in_(_OPEN)).order_by(
            sa.case((turns.c.state == "QUEUED", 1), else_=0), turns.c.number
        )
        return [turn_of(row) for row in await self._all(query)]

    async def list_messages(
        self, session_id: UUID, turn_id: UUID | None, roles: Sequence[str], after: int, limit: int
    ) -> list[Message]:
        """Returns messages in order."""
        query = (
            sa.select(messages)
            .where(messages.c.session_id == session_id, messages.c.sequence > after)
            .order_by(messages.c.sequence)
            .limit(limit)
        )
        if turn_id is not None:
            query = query.where(messages.c.turn_id == turn_id)
        if roles:
            query = query.where(messages.c.role.in_(roles))
        return [message_of(row) for row in await self._all(query)]

    async def list_tool_calls(
        self,
        session_id: UUID,
        turn_id: UUID | None,
        tool_name: str,
        states: Sequence[str],
        after: int,
        limit: int,
    ) -> list[ToolCall]:
        """Returns tool calls in order."""
        query = (
            sa.select(tool_calls)
            .where(tool_calls.c.session_id == session_id, tool_calls.c.sequence > after)
            .order_by(tool_calls.c.sequence)
            .limit(limit)
        )
        if turn_id is not None:
            query = query.where(tool_calls.c.turn_id == turn_id)
        if tool_name:
            query = query.where(tool_calls.c.tool_name == tool_name)
        if states:
            query = query.where(tool_calls.c.state.in_(states))
        return [tool_call_of(row) for row in await self._all(query)]

    async def list_events(
        self, session_id: UUID, turn_id: UUID | None, after: int, limit: int, most_bytes: int | None = None
    ) -> list[LogEvent]:
        """Returns events in order."""
        return await event_log.read(
            self._connection, session_id, after, limit, turn_id=turn_id, most_bytes=most_bytes
        )

    async def list_permission_requests(
        self,
        session_id: UUID | None,
        user_id: UUID | None,
        states: Sequence[str],
        after: UUID | None,
        limit: int,
    ) -> list[PermissionRequest]:
        """Returns permission requests, the oldest first."""
        query = (
            sa.select(permission_requests)
            .join(sessions, sessions.c.id == permission_requests.c.session_id)
            .where(sessions.c.delete_time.is_(None))
            .order_by(permission_requests.c.id)
            .limit(limit)
        )
        if session_id is not None:
            query = query.where(permission_requests.c.session_id == session_id)
        if user_id is not None:
            query = query.where(permission_requests.c.user_id == user_id)
        if states:
            query = query.where(permission_requests.c.state.in_(states))
        if after is not None:
            query = query.where(permission_requests.c.id > after)
        return [permission_request_of(row) for row in await self._all(query)]

    async def get_permission_request(self, session_id: UUID, request_id: UUID) -> PermissionRequest:
        """Returns a permission request of a session."""
        row = await self._one(
            sa.select(permission_requests).where(
                permission_requests.c.id == request_id, permission_requests.c.session_id == session_id
            )
        )
        if row is None:
            raise permission_request_not_found(request_id)
        return permission_request_of(row)

    async def get_content(self, session_id: UUID, content_id: UUID) -> Content:
        """Returns where a large text lies."""
        row = await self._one(
            sa.select(event_contents).where(
                event_contents.c.content_id == content_id, event_contents.c.session_id == session_id
            )
        )
        if row is None:
            raise content_not_found(content_id)
        return Content("", row.content_id, row.size_bytes, row.sha256)

    async def now(self) -> datetime:
        """The database's time."""
        moment: datetime = (await self._connection.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
        return moment
