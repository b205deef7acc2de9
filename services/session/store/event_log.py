"""The event log: gapless sequences under the head's row lock.

Who writes: the driver under its lease (`lock_head_fenced`), and use cases for what users do (`lock_head`). Both lock
the head's row first and hold it to the end of their transaction, so that appends of one session are serial and a
sequence, once given, is either committed or never existed. A process that dies before its commit leaves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.session import codec
from services.session.domain.entities import Head, Lease, LogEvent
from services.session.domain.errors import LeaseLost, session_not_found
from services.session.domain.events import EventDraft
from services.session.store.tables import events, session_heads, sessions

_HEAD_COLUMNS = (
    session_heads.c.session_id,
    session_heads.c.organization_id,
    session_heads.c.last_sequence,
    session_heads.c.lease_holder,
    session_heads.c.lease_epoch,
    session_heads.c.lease_expire_time,
)

# What every transaction of a driver runs is built once: it would cost as much as running it.
_THE_SESSION = session_heads.c.session_id == sa.bindparam(
    "the_session", type_=session_heads.c.session_id.type
)
_HEAD_OF_LEASE = (
    sa.select(*_HEAD_COLUMNS)
    .where(
        _THE_SESSION,
        session_heads.c.lease_epoch == sa.bindparam("epoch"),
        session_heads.c.lease_holder == sa.bindparam("holder"),
    )
    .with_for_update()
)
_ADVANCE_HEAD = sa.update(session_heads).where(_THE_SESSION)
_INSERT_EVENTS = sa.insert(events).returning(events.c.sequence, events.c.create_time)


def _head(row: Any) -> Head:
    return Head(
        session_id=row.session_id,
        organization_id=row.organization_id,
        last_sequence=row.last_sequence,
        lease_holder=row.lease_holder,
        lease_epoch=row.lease_epoch,
        lease_expire_time=row.lease_expire_time,
    )


async def lock_head(connection: AsyncConnection, session_id: UUID) -> Head:
    """Locks a session's head until the end of the transaction.

    Args:
        connection: A transaction; of a tenant it sees only what the caller may.
        session_id: The session.

    Returns:
        The head as it is now.

    Raises:
        ServiceError: NOT_FOUND with SESSION_NOT_FOUND when the session is not there, not visible, or deleted.
    """
    row = (
        await connection.execute(
            sa.select(*_HEAD_COLUMNS)
            .join(sessions, sessions.c.id == session_heads.c.session_id)
            .where(session_heads.c.session_id == session_id, sessions.c.delete_time.is_(None))
            .with_for_update(of=session_heads)
        )
    ).one_or_none()
    if row is None:
        raise session_not_found(session_id)
    return _head(row)


async def lock_head_fenced(connection: AsyncConnection, lease: Lease) -> Head:
    """Locks the head for the holder of a lease.

    The epoch alone is the fence: a lease that has run out but was not taken by anyone still excludes others, since
    whoever takes it raises the epoch under this same lock.

    Raises:
        LeaseLost: Another holder has a higher epoch, or the session is gone.
    """
    held = {"the_session": lease.session_id, "epoch": lease.epoch, "holder": lease.holder}
    row = (await connection.execute(_HEAD_OF_LEASE, held)).one_or_none()
    if row is None:
        raise LeaseLost(f"epoch {lease.epoch} of session {lease.session_id} has ended")
    return _head(row)


async def append(
    connection: AsyncConnection, head: Head, drafts: Sequence[EventDraft], **head_values: Any
) -> list[LogEvent]:
    """Appends events to a log whose head this transaction has locked.

    Args:
        connection: The transaction that holds the lock.
        head: What `lock_head` or `lock_head_fenced` returned in it. Call once per transaction, with everything.
        drafts: The events, in order.
        head_values: What else is to be written to the head, with its last sequence, even without an event.

    Returns:
        The events with their sequences and times, for the live feed once the transaction is committed.
    """
    last = head.last_sequence + len(drafts)
    if drafts or head_values:
        advance = _ADVANCE_HEAD.values(head_values) if head_values else _ADVANCE_HEAD
        await connection.execute(advance, {"the_session": head.session_id, "last_sequence": last})
    if not drafts:
        return []
    first = head.last_sequence + 1
    encoded = [codec.encode(draft.event) for draft in drafts]
    rows = (
        await connection.execute(
            _INSERT_EVENTS,
            [
                {
                    "organization_id": head.organization_id,
                    "session_id": head.session_id,
                    "sequence": first + index,
                    "turn_id": draft.turn_id,
                    "kind": kind,
                    "payload": payload,
                }
                for index, (draft, (kind, payload)) in enumerate(zip(drafts, encoded, strict=True))
            ],
        )
    ).all()
    times = {row.sequence: row.create_time for row in rows}
    return [
        LogEvent(
            session_id=head.session_id,
            sequence=first + index,
            turn_id=draft.turn_id,
            kind=kind,
            payload=payload,
            create_time=times[first + index],
        )
        for index, (draft, (kind, payload)) in enumerate(zip(drafts, encoded, strict=True))
    ]


async def read(
    connection: AsyncConnection,
    session_id: UUID,
    after_sequence: int,
    limit: int,
    *,
    turn_id: UUID | None = None,
    most_bytes: int | None = None,
) -> list[LogEvent]:
    """Reads events in order.

    Args:
        connection: A transaction that may see the session.
        session_id: The session.
        after_sequence: Events after this one; 0 for all.
        limit: How many at most.
        turn_id: Only events of this turn.
        most_bytes: End with the event by which the payloads have this size: one event more at most. None for no bound.

    Returns:
        The events; fewer than `limit`, and less than `most_bytes`, when the log ends.
    """
    wanted = [events.c.session_id == session_id, events.c.sequence > after_sequence]
    if turn_id is not None:
        wanted.append(events.c.turn_id == turn_id)
    query = sa.select(
        events.c.sequence, events.c.turn_id, events.c.kind, events.c.payload, events.c.create_time
    )
    if most_bytes is not None:
        wanted.append(events.c.sequence <= _last_within(wanted, limit, most_bytes))
    query = query.where(*wanted).order_by(events.c.sequence).limit(limit)
    return [
        LogEvent(
            session_id=session_id,
            sequence=row.sequence,
            turn_id=row.turn_id,
            kind=row.kind,
            payload=bytes(row.payload),
            create_time=row.create_time,
        )
        for row in await connection.execute(query)
    ]


def _last_within(
    wanted: Sequence[sa.ColumnElement[bool]], limit: int, most_bytes: int
) -> sa.ScalarSelect[Any]:
    """The event by which a portion has its size. Sizes are in the rows: no payload is fetched for this."""
    size = sa.func.octet_length(events.c.payload)
    sizes = (
        sa.select(events.c.sequence, size.label("size"))
        .where(*wanted)
        .order_by(events.c.sequence)
        .limit(limit)
        .subquery()
    )
    before = (sa.func.sum(sizes.c.size).over(order_by=sizes.c.sequence) - sizes.c.size).label("before")
    portion = sa.select(sizes.c.sequence, before).subquery()
    return sa.select(sa.func.max(portion.c.sequence)).where(portion.c.before < most_bytes).scalar_subquery()
