"""The queries of the system role: the only ones that look across tenants.

They serve drivers, which work for every organization. Each is a method of `DriverQueries` or a function of
`leases`; a test lists them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.kernel.db.idempotency import purge_expired
from services.session.domain.driving import DrivenSession, DrivenTurn, Work
from services.session.domain.entities import Lease, Usage
from services.session.domain.states import SessionMode, SessionState, TurnState
from services.session.store import leases
from services.session.store.columns import content_of
from services.session.store.event_log import lock_head_fenced
from services.session.store.facts import OUTBOX
from services.session.store.fenced import FencedConnection
from services.session.store.tables import (
    idempotency_keys,
    permission_requests,
    session_heads,
    sessions,
    turns,
)

_NOW = sa.func.clock_timestamp()
_OPEN = ("QUEUED", "STARTING", "RUNNING", "WAITING")

# A parked turn has something to do only when it was interrupted, or a question of it has found its end.
_ANSWERED = sa.exists().where(
    permission_requests.c.turn_id == turns.c.id,
    permission_requests.c.consume_time.is_(None),
    sa.or_(
        permission_requests.c.state.in_(("ALLOWED", "DENIED", "EXPIRED")),
        sa.and_(permission_requests.c.state == "PENDING", permission_requests.c.expire_time < _NOW),
    ),
)
_ASKED = sa.exists().where(
    permission_requests.c.turn_id == turns.c.id,
    permission_requests.c.state == "PENDING",
    permission_requests.c.expire_time >= _NOW,
)
# A session's turns run one after the other: one that has begun, even a parked one, holds up those that wait.
_begun = turns.alias("begun")
_HELD_UP = sa.and_(
    turns.c.state == "QUEUED",
    sa.exists().where(
        _begun.c.session_id == turns.c.session_id, _begun.c.state.in_(("STARTING", "RUNNING", "WAITING"))
    ),
)
_ACTIONABLE = sa.and_(
    turns.c.state.in_(_OPEN),
    sa.not_(_HELD_UP),
    sa.or_(
        turns.c.parked.is_(False),
        turns.c.interrupt_time.is_not(None),
        sa.not_(_ASKED),
    ),
)
"""What a driver can do something about: the one condition of `work`, of giving a lease back, and of the sweep."""


_LAST_EXECUTOR = (
    sa.select(turns.c.executor_id)
    .where(turns.c.session_id == sessions.c.id, turns.c.executor_id.is_not(None))
    .order_by(turns.c.number.desc())
    .limit(1)
    .scalar_subquery()
)


def _abandoned() -> sa.Select[Any]:
    """Built once: every replica asks once a second, idle or not."""
    free = sa.or_(session_heads.c.lease_holder.is_(None), session_heads.c.lease_expire_time < _NOW)
    with_turns = (
        sa.select(turns.c.session_id, turns.c.create_time.label("since"))
        .join(session_heads, session_heads.c.session_id == turns.c.session_id)
        .where(free, _ACTIONABLE)
    )
    deleted = (
        sa.select(sessions.c.id, sessions.c.delete_time.label("since"))
        .join(session_heads, session_heads.c.session_id == sessions.c.id)
        .where(free, sessions.c.delete_time.is_not(None))
    )
    found = sa.union(with_turns, deleted).subquery()
    return (
        sa.select(found.c.session_id)
        .group_by(found.c.session_id)
        .order_by(sa.func.min(found.c.since))
        .limit(sa.bindparam("most", type_=sa.Integer))
    )


_ABANDONED = _abandoned()


class DriverQueries:
    """See `usecases.driver.ports.DriverStore`."""

    def __init__(self, database: Database) -> None:
        """Args: database: its system role is used, and two dedicated connections, for renewals and heads."""
        self._database = database

    async def acquire(self, session_id: UUID, holder: str) -> Lease | None:
        """Takes the session's lease if it is free or has run out."""
        async with self._database.system() as connection:
            return await leases.acquire(connection, session_id, holder)

    async def renew(self, held: Sequence[Lease], turn_ids: Sequence[UUID]) -> tuple[set[UUID], set[UUID]]:
        """Renews leases on the dedicated connection, and notes the time of the heartbeats that follow.

        Returns:
            The sessions whose lease is lost, and the turns whose time was noted: one that is locked at this moment is
            being written, or stands in a transaction of a replica that is frozen, and must not hold up the others.
        """
        async with self._database.dedicated_system() as connection:
            lost = await leases.renew(connection, held)
            if not turn_ids:
                return lost, set()
            free = sa.select(turns.c.id).where(turns.c.id.in_(turn_ids)).with_for_update(skip_locked=True)
            noted = await connection.execute(
                sa.update(turns)
                .where(turns.c.id.in_(free.scalar_subquery()))
                .values(heartbeat_time=_NOW)
                .returning(turns.c.id)
            )
            return lost, set(noted.scalars())

    async def release(self, lease: Lease) -> None:
        """Gives a lease back whatever is open."""
        async with self._database.system() as connection:
            await leases.release(connection, lease)

    async def release_if_idle(self, lease: Lease) -> bool:
        """Gives a lease back under the head's lock if there is nothing to do."""
        async with self._database.system() as connection:
            await lock_head_fenced(connection, lease)
            if await self._has_work(connection, lease.session_id):
                return False
            await leases.release(connection, lease)
            return True

    async def _has_work(self, connection: AsyncConnection, session_id: UUID) -> bool:
        open_turn = sa.exists().where(turns.c.session_id == session_id, _ACTIONABLE)
        deleted = sa.exists().where(sessions.c.id == session_id, sessions.c.delete_time.is_not(None))
        return bool((await connection.execute(sa.select(sa.or_(open_turn, deleted)))).scalar_one())

    async def work(self, lease: Lease) -> Work | None:
        """What the session has to do now: its removal, or its first actionable turn."""
        async with self._database.system() as connection:
            row = (
                await connection.execute(
                    sa.select(sessions, _NOW.label("now"), _LAST_EXECUTOR.label("last_executor_id")).where(
                        sessions.c.id == lease.session_id
                    )
                )
            ).one_or_none()
            if row is None:
                return None
            session = _driven_session(row)
            turn = (
                await connection.execute(
                    sa.select(turns, _ACTIONABLE.label("actionable"))
                    .where(turns.c.session_id == lease.session_id, turns.c.state.in_(_OPEN))
                    .order_by(sa.case((turns.c.state == "QUEUED", 1), else_=0), turns.c.number)
                    .limit(1)
                )
            ).one_or_none()
            if session.deleted:
                return Work(session, _driven_turn(turn) if turn else None, row.now)
            if turn is None or not turn.actionable:
                return None
            return Work(session, _driven_turn(turn), row.now)

    async def with_commands(self, session_ids: Sequence[UUID]) -> set[UUID]:
        """Those of the sessions for which an interrupt, an answer, an expiry or a deletion is waiting."""
        if not session_ids:
            return set()
        async with self._database.system() as connection:
            commanded = sa.select(turns.c.session_id).where(
                turns.c.session_id.in_(session_ids),
                turns.c.state.in_(_OPEN),
                sa.or_(turns.c.interrupt_time.is_not(None), _ANSWERED),
            )
            deleted = sa.select(sessions.c.id).where(
                sessions.c.id.in_(session_ids), sessions.c.delete_time.is_not(None)
            )
            return set((await connection.execute(sa.union(commanded, deleted))).scalars())

    async def abandoned(self, limit: int) -> list[UUID]:
        """Sessions that have work and no live lease, those waiting longest first."""
        async with self._database.system() as connection:
            return list((await connection.execute(_ABANDONED, {"most": limit})).scalars())

    async def heads(self, session_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The last sequence of each of the sessions that is there; deleted ones are left out.

        On a dedicated connection: watchers count on it within a second, however busy drivers keep the others.
        """
        async with self._database.dedicated_system() as connection:
            rows = await connection.execute(
                sa.select(session_heads.c.session_id, session_heads.c.last_sequence)
                .join(sessions, sessions.c.id == session_heads.c.session_id)
                .where(session_heads.c.session_id.in_(session_ids), sessions.c.delete_time.is_(None))
            )
            return {row.session_id: row.last_sequence for row in rows}

    async def executor_targets(self, session_id: UUID) -> set[str]:
        """Where turns of the session last ran."""
        query = (
            sa.select(turns.c.executor_target)
            .distinct()
            .where(turns.c.session_id == session_id, turns.c.executor_target.is_not(None))
        )
        async with self._database.system() as connection:
            return set((await connection.execute(query)).scalars())

    async def purge_request_ids(self) -> int:
        """Deletes a bounded number of request ids that have expired; returns how many."""
        async with self._database.system() as connection:
            return await purge_expired(connection, idempotency_keys)

    async def purge_facts(self, *, unwanted: bool) -> int:
        """Deletes a bounded number of facts that have had their time; returns how many. See `Outbox.purge`."""
        async with self._database.system() as connection:
            return await OUTBOX.purge(connection, unwanted=unwanted)

    async def purge(self, lease: Lease) -> None:
        """Removes the rows of a deleted session; every other table follows by its foreign key, request ids too."""
        async with self._database.system() as connection:
            await lock_head_fenced(connection, lease)
            await connection.execute(
                sa.delete(sessions).where(
                    sessions.c.id == lease.session_id, sessions.c.delete_time.is_not(None)
                )
            )

    @asynccontextmanager
    async def fenced(self, lease: Lease) -> AsyncIterator[FencedConnection]:
        """Opens a transaction that holds the head's lock."""
        async with self._database.system() as connection:
            head = await lock_head_fenced(connection, lease)
            now: datetime = (await connection.execute(sa.select(_NOW))).scalar_one()
            yield FencedConnection(connection, head, now)


def _driven_session(row: Row[Any]) -> DrivenSession:
    return DrivenSession(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        state=SessionState(row.state),
        sdk_options=row.sdk_options,
        permission_timeout=row.permission_timeout,
        turn_timeout=row.turn_timeout,
        cost_usd=float(row.cost_usd),
        cli_session_id=row.cli_session_id,
        deleted=row.delete_time is not None,
        last_executor_id=row.last_executor_id,
        background=row.mode == SessionMode.BACKGROUND,
    )


def _driven_turn(row: Row[Any]) -> DrivenTurn:
    return DrivenTurn(
        id=row.id,
        number=row.number,
        user_id=row.user_id,
        state=TurnState(row.state),
        message_id=row.message_id,
        message=content_of(row, "message"),
        attempt=row.attempt,
        lost_attempts=row.lost_attempts,
        applied_offset=row.applied_offset,
        executor_id=row.executor_id,
        executor_target=row.executor_target,
        executor_incarnation=row.executor_incarnation,
        heartbeat_time=row.heartbeat_time,
        parked=row.parked,
        interrupt_time=row.interrupt_time,
        active_ms=row.active_ms,
        active_since=row.active_since,
        start_time=row.start_time,
        usage=Usage(row.input_tokens, row.output_tokens, row.cache_read_tokens, row.cache_write_tokens),
        cost_usd=float(row.cost_usd),
        model_calls=row.model_calls,
        request_id=row.request_id,
    )
