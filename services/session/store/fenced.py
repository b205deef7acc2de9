"""One transaction of a driver: what it reads under the head's lock, and the single write of all its changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.session.domain.driving import Answer, Changes, DrivenTurn
from services.session.domain.entities import Content, Head, LogEvent, ToolUse
from services.session.domain.errors import LeaseLost, TurnMoved
from services.session.domain.states import PermissionRequestState, ToolCallState, TurnState
from services.session.store.columns import content_columns, content_of
from services.session.store.event_log import append
from services.session.store.facts import add_facts
from services.session.store.leases import LEASE_LIFE
from services.session.store.rows import tool_use_of
from services.session.store.tables import (
    event_contents,
    messages,
    permission_requests,
    session_heads,
    sessions,
    tool_calls,
    turns,
)
from services.session.usecases.driver.ports import KnownCall

_NOW = sa.func.clock_timestamp()
# What a call has until it is decided and over.
_UNDECIDED: dict[str, Any] = dict.fromkeys(
    (
        "decision_allowed",
        "decision_source",
        "decision_reason",
        "decision_user_id",
        "result_text",
        "result_content_id",
        "result_size_bytes",
        "result_sha256",
        "result_is_error",
        "end_time",
    )
)
_OPEN_CALLS = ("REQUESTED", "WAITING", "RUNNING")


class FencedConnection:
    """See `usecases.driver.ports.FencedTransaction`."""

    def __init__(self, connection: AsyncConnection, head: Head, now: datetime) -> None:
        """Args: connection: the transaction; head: what its lock returned; now: the database's time."""
        self._connection = connection
        self._head = head
        self.now = now
        self.last_sequence = head.last_sequence

    async def open_calls(self, turn_id: UUID) -> list[KnownCall]:
        """Tool calls of the turn that are not over."""
        return await self._calls(tool_calls.c.turn_id == turn_id, tool_calls.c.state.in_(_OPEN_CALLS))

    async def calls_of(self, turn_id: UUID, attempt: int) -> list[KnownCall]:
        """Every tool call of an attempt, in order."""
        return await self._calls(tool_calls.c.turn_id == turn_id, tool_calls.c.attempt == attempt)

    async def _calls(self, *conditions: sa.ColumnElement[bool]) -> list[KnownCall]:
        rows = await self._connection.execute(
            sa.select(tool_calls).where(*conditions).order_by(tool_calls.c.sequence)
        )
        return [
            KnownCall(
                tool_use=ToolUse(
                    row.tool_use_id,
                    row.tool_name,
                    content_of(row, "input"),
                    row.input_hash,
                    row.parent_tool_use_id,
                ),
                attempt=row.attempt,
                state=ToolCallState(row.state),
                decision_allowed=row.decision_allowed,
                decision_reason=row.decision_reason or "",
                ended=row.end_time is not None,
            )
            for row in rows
        ]

    async def finished_calls(self, turn_id: UUID) -> list[tuple[ToolUse, Content]]:
        """Tool calls of the turn that ran and have a result, with it, in order."""
        rows = await self._connection.execute(
            sa.select(tool_calls)
            .where(tool_calls.c.turn_id == turn_id, tool_calls.c.state.in_(("SUCCEEDED", "FAILED")))
            .order_by(tool_calls.c.sequence)
        )
        return [(tool_use_of(row), content_of(row, "result")) for row in rows]

    async def transcript_position(self) -> int:
        """The last position of the session's transcripts: as it is when this transaction commits."""
        query = sa.select(session_heads.c.transcript_position).where(
            session_heads.c.session_id == self._head.session_id
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def answers(self, turn_id: UUID) -> list[Answer]:
        """The turn's permission requests whose answer was not used, the oldest first."""
        rows = await self._connection.execute(
            sa.select(permission_requests)
            .where(
                permission_requests.c.turn_id == turn_id,
                permission_requests.c.consume_time.is_(None),
                permission_requests.c.state != "CANCELLED",
            )
            .order_by(permission_requests.c.id)
        )
        return [
            Answer(
                id=row.id,
                tool_use_id=row.tool_use_id,
                tool_name=row.tool_name,
                input=content_of(row, "input"),
                input_hash=row.input_hash,
                state=PermissionRequestState(row.state),
                reason=row.reason,
                resolved_by=row.resolved_by,
                ask_time=row.create_time,
                expire_time=row.expire_time,
                consumed=False,
            )
            for row in rows
        ]

    async def next_open_turn(self, after: UUID | None) -> tuple[UUID, TurnState] | None:
        """The session's first open turn other than `after`."""
        row = (
            await self._connection.execute(
                sa.select(turns.c.id, turns.c.state)
                .where(
                    turns.c.session_id == self._head.session_id,
                    turns.c.state.in_(("QUEUED", "STARTING", "RUNNING", "WAITING")),
                    turns.c.id != after,
                )
                .order_by(turns.c.number)
                .limit(1)
            )
        ).one_or_none()
        return (row.id, TurnState(row.state)) if row else None

    async def confirm(self, turn: DrivenTurn) -> None:
        """Makes sure, under the lock, that the turn stands where it was read without one."""
        row = (
            await self._connection.execute(
                sa.select(turns.c.state, turns.c.attempt, turns.c.applied_offset).where(turns.c.id == turn.id)
            )
        ).one_or_none()
        if row is None or tuple(row) != (turn.state.value, turn.attempt, turn.applied_offset):
            raise TurnMoved(f"turn {turn.id} is no longer {turn.state} in attempt {turn.attempt}")

    async def refresh(self, turn: DrivenTurn) -> None:
        """Rereads the wish to interrupt, of which deleting the session is one, and the time of the last heartbeat."""
        row = (
            await self._connection.execute(
                sa.select(
                    sa.func.coalesce(turns.c.interrupt_time, sessions.c.delete_time).label("interrupt_time"),
                    turns.c.heartbeat_time,
                )
                .join(sessions, sessions.c.id == turns.c.session_id)
                .where(turns.c.id == turn.id)
            )
        ).one()
        turn.interrupt_time = row.interrupt_time
        turn.heartbeat_time = row.heartbeat_time

    async def write(self, turn: DrivenTurn, changes: Changes, *, expected_offset: int) -> list[LogEvent]:
        """Appends the events and writes every projection."""
        # An append proves that the driver lives: it renews the lease on the way.
        renewed = _NOW + LEASE_LIFE
        events = await append(self._connection, self._head, changes.drafts, lease_expire_time=renewed)
        await add_facts(self._connection, self._head, changes.drafts, events, user_id=turn.user_id)
        first = self._head.last_sequence + 1
        values = dict(changes.turn)
        if events:
            values["last_sequence"] = events[-1].sequence
        if "applied_offset" in values:
            # The acknowledgement that follows counts as a heartbeat.
            values["heartbeat_time"] = _NOW
        if values:
            moved = await self._connection.execute(
                sa.update(turns)
                .where(turns.c.id == turn.id, turns.c.applied_offset == expected_offset)
                .values(values)
            )
            if moved.rowcount != 1:
                raise LeaseLost(f"turn {turn.id} has moved on from offset {expected_offset}")
        await self._insert(changes, first)
        await self._update(turn, changes)
        self.last_sequence = events[-1].sequence if events else self._head.last_sequence
        return events

    def _row(self) -> dict[str, Any]:
        return {
            "session_id": self._head.session_id,
            "organization_id": self._head.organization_id,
        }

    async def _insert(self, changes: Changes, first: int) -> None:
        if changes.contents:
            await self._connection.execute(
                insert(event_contents).on_conflict_do_nothing(),
                [
                    {
                        **self._row(),
                        "content_id": content.content_id,
                        "size_bytes": content.size_bytes,
                        "sha256": content.sha256,
                    }
                    for content in changes.contents
                ],
            )
        if changes.messages:
            await self._connection.execute(
                sa.insert(messages),
                [
                    {
                        **self._row(),
                        "id": message.id,
                        "turn_id": message.turn_id,
                        "sequence": first + message.draft,
                        "role": "ASSISTANT",
                        "type": "THINKING" if message.thinking else "TEXT",
                        **content_columns("content", message.content),
                        "model": message.model,
                        "parent_tool_use_id": message.parent_tool_use_id,
                    }
                    for message in changes.messages
                ],
            )
        if changes.tool_calls:
            # The model names its calls: one that uses a name twice in an attempt must not stop the log.
            await self._connection.execute(
                insert(tool_calls).on_conflict_do_nothing(),
                [
                    {
                        **self._row(),
                        "tool_use_id": call.tool_use.tool_use_id,
                        "turn_id": call.turn_id,
                        "attempt": call.attempt,
                        "tool_name": call.tool_use.tool_name,
                        **content_columns("input", call.tool_use.input_json),
                        "input_hash": call.tool_use.input_hash,
                        "parent_tool_use_id": call.tool_use.parent_tool_use_id,
                        "state": ToolCallState.REQUESTED.value,
                        "sequence": first + call.draft,
                    }
                    for call in changes.tool_calls
                ],
            )
        if changes.permission_requests:
            await self._connection.execute(
                sa.insert(permission_requests),
                [
                    {
                        **self._row(),
                        "id": request.id,
                        "user_id": request.user_id,
                        "turn_id": request.turn_id,
                        "tool_use_id": request.tool_use.tool_use_id,
                        "tool_name": request.tool_use.tool_name,
                        **content_columns("input", request.tool_use.input_json),
                        "input_hash": request.tool_use.input_hash,
                        "state": PermissionRequestState.PENDING.value,
                        "expire_time": request.expire_time,
                    }
                    for request in changes.permission_requests
                ],
            )

    async def _update(self, turn: DrivenTurn, changes: Changes) -> None:
        for update in changes.tool_call_updates:
            values: dict[str, Any] = {"state": update.state.value}
            if update.asked_anew is not None:
                values |= content_columns("input", update.asked_anew.input_json) | _UNDECIDED
                values["input_hash"] = update.asked_anew.input_hash
            if update.decision is not None:
                values |= {
                    "decision_allowed": update.decision.allowed,
                    "decision_source": update.decision.source,
                    "decision_reason": update.decision.reason,
                    "decision_user_id": update.decision.user_id,
                }
            if update.result is not None:
                values |= content_columns("result", update.result)
                values["result_is_error"] = update.result_is_error
            if update.ended:
                values["end_time"] = _NOW
            await self._connection.execute(
                sa.update(tool_calls)
                .where(
                    tool_calls.c.session_id == self._head.session_id,
                    tool_calls.c.turn_id == turn.id,
                    tool_calls.c.attempt == update.attempt,
                    tool_calls.c.tool_use_id == update.tool_use_id,
                )
                .values(values)
            )
        for question in changes.permission_updates:
            values = {}
            if question.state is not None:
                values |= {"state": question.state.value, "resolve_time": _NOW}
            if question.consumed:
                values["consume_time"] = _NOW
            await self._connection.execute(
                sa.update(permission_requests).where(permission_requests.c.id == question.id).values(values)
            )
        if changes.session or changes.counters or changes.drafts:
            values = dict(changes.session)
            values |= {name: sessions.c[name] + by for name, by in changes.counters.items()}
            values |= {"version": sessions.c.version + 1, "update_time": _NOW}
            await self._connection.execute(
                sa.update(sessions).where(sessions.c.id == self._head.session_id).values(values)
            )
