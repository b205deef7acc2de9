"""A caller's transaction: what it reads, and what it writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.kernel.db.idempotency import KEPT_FOR, once
from services.kernel.identity import Caller
from services.session.domain.entities import Content, Head, LogEvent
from services.session.domain.events import EventDraft
from services.session.domain.states import PermissionRequestState, SessionMode, SessionState
from services.session.store import event_log
from services.session.store.columns import content_columns
from services.session.store.facts import add_facts
from services.session.store.queue import QueueQueries
from services.session.store.tables import (
    event_contents,
    idempotency_keys,
    messages,
    permission_requests,
    session_heads,
    sessions,
    turns,
)
from services.session.store.tenant_reads import TenantReads
from services.session.usecases.ports import NewSession, NewTurn

_NOW = sa.func.clock_timestamp()
_INSERT_SESSION = sa.insert(sessions)
_INSERT_HEAD = sa.insert(session_heads)


class TenantTransaction(TenantReads):
    """See `usecases.ports.SessionTransaction`."""

    def __init__(self, connection: AsyncConnection, caller: Caller) -> None:
        """Args: connection: a tenant's transaction; caller: whose."""
        super().__init__(connection)
        self._caller = caller

    async def once(
        self,
        method: str,
        request_id: str,
        request: bytes,
        run: Callable[[], Awaitable[bytes]],
        *,
        lives_with: UUID | None = None,
    ) -> bytes:
        """Does a mutation once for each request id."""
        return await once(
            self._connection,
            idempotency_keys,
            caller_id=self._caller.user_id,
            organization_id=self._caller.organization_id,
            method=method,
            request_id=request_id,
            request=request,
            expire_after=KEPT_FOR if lives_with is None else None,
            run=run,
            columns={"session_id": lives_with},
        )

    async def insert_session(self, new: NewSession) -> None:
        """Creates a session with an empty log."""
        organization_id = self._caller.organization_id
        row = {
            "id": new.id,
            "organization_id": organization_id,
            "user_id": self._caller.user_id,
            "name": new.name,
            "mode": SessionMode(new.mode).value,
            "state": SessionState.CREATED.value,
            "sdk_options": dict(new.sdk_options),
            "labels": dict(new.labels),
            "permission_timeout": new.permission_timeout,
            "turn_timeout": new.turn_timeout,
        }
        await self._connection.execute(_INSERT_SESSION, row)
        head = {"session_id": new.id, "organization_id": organization_id}
        await self._connection.execute(_INSERT_HEAD, head)

    async def update_session(
        self, session_id: UUID, values: Mapping[str, Any], counters: Mapping[str, int] | None = None
    ) -> None:
        """Changes columns of a session, and with them its version."""
        added = {name: sessions.c[name] + by for name, by in (counters or {}).items()}
        await self._connection.execute(
            sa.update(sessions)
            .where(sessions.c.id == session_id)
            .values({**values, **added, "version": sessions.c.version + 1, "update_time": _NOW})
        )

    async def mark_deleted(self, session_id: UUID) -> None:
        """Makes a session invisible; a driver removes it."""
        await self._connection.execute(
            sa.update(sessions).where(sessions.c.id == session_id).values(delete_time=_NOW)
        )

    async def lock_head(self, session_id: UUID) -> Head:
        """Locks the head of a session's log."""
        return await event_log.lock_head(self._connection, session_id)

    async def append(self, head: Head, drafts: Sequence[EventDraft]) -> list[LogEvent]:
        """Appends events to the log."""
        entries = await event_log.append(self._connection, head, drafts)
        await add_facts(self._connection, head, drafts, entries)
        return entries

    async def insert_turn(self, head: Head, new: NewTurn, first_sequence: int, last_sequence: int) -> None:
        """Creates a queued turn with the message that started it."""
        number = (
            await self._connection.execute(
                sa.select(sa.func.coalesce(sa.func.max(turns.c.number), 0) + 1).where(
                    turns.c.session_id == head.session_id
                )
            )
        ).scalar_one()
        shared = {"session_id": head.session_id, "organization_id": head.organization_id}
        await self._keep(head, new.message)
        await self._connection.execute(
            sa.insert(turns).values(
                **shared,
                id=new.id,
                user_id=new.owner_id,
                number=number,
                state="QUEUED",
                message_id=new.message_id,
                request_id=new.request_id,
                **content_columns("message", new.message),
                first_sequence=first_sequence,
                last_sequence=last_sequence,
            )
        )
        await self._connection.execute(
            sa.insert(messages).values(
                **shared,
                id=new.message_id,
                turn_id=new.id,
                sequence=first_sequence,
                role="USER",
                type="TEXT",
                **content_columns("content", new.message),
            )
        )

    async def _keep(self, head: Head, content: Content) -> None:
        if content.content_id is not None:
            await self._connection.execute(
                sa.insert(event_contents).values(
                    session_id=head.session_id,
                    organization_id=head.organization_id,
                    content_id=content.content_id,
                    size_bytes=content.size_bytes,
                    sha256=content.sha256,
                )
            )

    async def request_interrupt(self, turn_id: UUID) -> bool:
        """Notes the wish to stop a turn; False when it was noted before."""
        changed = await self._connection.execute(
            sa.update(turns)
            .where(turns.c.id == turn_id, turns.c.interrupt_time.is_(None))
            .values(interrupt_time=_NOW)
        )
        return changed.rowcount == 1

    async def end_queued_turn(self, turn_id: UUID, last_sequence: int) -> None:
        """Ends a turn that has not begun, as interrupted."""
        await self._connection.execute(
            sa.update(turns)
            .where(turns.c.id == turn_id, turns.c.state == "QUEUED")
            .values(state="INTERRUPTED", end_time=_NOW, last_sequence=last_sequence)
        )

    async def resolve_permission_request(
        self, request_id: UUID, state: PermissionRequestState, reason: str
    ) -> None:
        """Stores a person's answer."""
        await self._connection.execute(
            sa.update(permission_requests)
            .where(permission_requests.c.id == request_id, permission_requests.c.state == "PENDING")
            .values(state=state.value, reason=reason, resolved_by=self._caller.user_id, resolve_time=_NOW)
        )


class TenantStore:
    """See `usecases.ports.SessionStore`."""

    def __init__(self, database: Database) -> None:
        """Args: database: the session schema."""
        self._database = database
        self._queue = QueueQueries(database)

    async def ahead(self, turn_ids: Sequence[UUID]) -> dict[UUID, int]:
        """See SessionStore."""
        return await self._queue.ahead(turn_ids)

    @asynccontextmanager
    async def begin(self, caller: Caller) -> AsyncIterator[TenantTransaction]:
        """Opens a transaction that sees what the caller may see; commits when its block ends without an error."""
        async with self._database.tenant(caller) as connection:
            yield TenantTransaction(connection, caller)
