"""What other services are told: for each entry of the log that matters to them, a row of the outbox.

Written by whoever appends to the log, in the same transaction and under the same lock of the session's head: there is
no entry without its fact, and no fact without its entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.outbox import NewOutboxMessage, Outbox, OutboxWriter
from services.kernel.ids import new_id
from services.kernel.kafka.topics import Topic
from services.session import codec
from services.session.domain import events
from services.session.domain.entities import Head, LogEvent
from services.session.domain.events import EventDraft
from services.session.store.tables import outbox, sessions

SESSION_FACTS: Final = Topic("session-facts", "aiagent.events.v1.SessionFact")
_FACTS: Final = (events.TurnEnded, events.ToolDecided, events.PermissionResolved)
OUTBOX: Final = Outbox(outbox)
_WRITER: Final = OutboxWriter(outbox)
_OWNER: Final = sa.select(sessions.c.user_id).where(sessions.c.id == sa.bindparam("session_id"))


async def add_facts(
    connection: AsyncConnection,
    head: Head,
    drafts: Sequence[EventDraft],
    entries: Sequence[LogEvent],
    *,
    user_id: UUID | None = None,
) -> None:
    """Writes the facts that are among entries of a log.

    Args:
        connection: The transaction that appended them.
        head: What it has locked.
        drafts: What it appended.
        entries: What `append` made of that, in the same order.
        user_id: Whose session it is; read if left out.
    """
    told = [
        (draft, entry)
        for draft, entry in zip(drafts, entries, strict=True)
        if isinstance(draft.event, _FACTS)
    ]
    if not told:
        return
    if user_id is None:
        user_id = (await connection.execute(_OWNER, {"session_id": head.session_id})).scalar_one()
    messages = []
    for draft, entry in told:
        event_id = new_id()
        payload = codec.fact(event_id, head.organization_id, user_id, entry, draft.event)
        if payload is not None:
            key = str(head.session_id)
            messages.append(
                NewOutboxMessage(event_id, head.organization_id, SESSION_FACTS.name, key, payload)
            )
    await _WRITER.add_all(connection, messages)
