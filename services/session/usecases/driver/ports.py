"""What drivers need of the database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.session.domain.driving import Answer, Changes, DrivenTurn, Work
from services.session.domain.entities import Content, Lease, LogEvent, ToolUse
from services.session.domain.states import ToolCallState, TurnState


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A tool call as the log knows it; `ended` says that its result is known, or never will be."""

    tool_use: ToolUse
    attempt: int
    state: ToolCallState
    decision_allowed: bool | None
    decision_reason: str
    ended: bool


class FencedTransaction(Protocol):
    """A transaction that holds the head's lock under a lease; commits when its block ends without an error."""

    now: datetime
    last_sequence: int

    async def open_calls(self, turn_id: UUID) -> list[KnownCall]:
        """Tool calls of the turn that are not over."""

    async def calls_of(self, turn_id: UUID, attempt: int) -> list[KnownCall]:
        """Every tool call of an attempt, in order."""

    async def finished_calls(self, turn_id: UUID) -> list[tuple[ToolUse, Content]]:
        """Tool calls of the turn that ran and have a result, with it."""

    async def transcript_position(self) -> int:
        """The last position of the session's transcripts: as it is when this transaction commits."""

    async def answers(self, turn_id: UUID) -> list[Answer]:
        """The turn's permission requests whose answer was not used, the pending ones included."""

    async def next_open_turn(self, after: UUID | None) -> tuple[UUID, TurnState] | None:
        """The session's first open turn other than `after`."""

    async def confirm(self, turn: DrivenTurn) -> None:
        """Makes sure, under the lock, that the turn stands where this driver read it without one: users end queued
        turns.

        Raises:
            TurnMoved: Its state or its attempt is another by now.
        """

    async def refresh(self, turn: DrivenTurn) -> None:
        """Rereads what others may change: the wish to interrupt, and the time of the last heartbeat."""

    async def write(self, turn: DrivenTurn, changes: Changes, *, expected_offset: int) -> list[LogEvent]:
        """Writes everything.

        Args:
            turn: The turn the changes are about.
            changes: What to write.
            expected_offset: `applied_offset` as this driver knows it.

        Raises:
            LeaseLost: The turn has moved on without this driver.
        """


class DriverStore(Protocol):
    """The database as drivers use it, across tenants."""

    async def acquire(self, session_id: UUID, holder: str) -> Lease | None:
        """Takes the session's lease if it is free or has run out."""

    async def renew(self, leases: Sequence[Lease], turn_ids: Sequence[UUID]) -> tuple[set[UUID], set[UUID]]:
        """Renews leases and stores the time of the heartbeats about to be sent for `turn_ids`; returns the
        sessions whose lease is lost, and the turns whose time was stored."""

    async def release(self, lease: Lease) -> None:
        """Gives a lease back whatever is open, so that another replica takes it at once."""

    async def release_if_idle(self, lease: Lease) -> bool:
        """Gives a lease back under the head's lock if there is nothing to do; False when there is."""

    async def work(self, lease: Lease) -> Work | None:
        """What the session has to do now; None for nothing, or only for a person's answer."""

    async def with_commands(self, session_ids: Sequence[UUID]) -> set[UUID]:
        """Those of the sessions for which an interrupt, an answer, an expiry or a deletion is waiting."""

    async def abandoned(self, limit: int) -> list[UUID]:
        """Sessions that have work and no live lease."""

    async def executor_targets(self, session_id: UUID) -> set[str]:
        """Where turns of the session last ran."""

    async def purge(self, lease: Lease) -> None:
        """Removes the rows of a deleted session."""

    def fenced(self, lease: Lease) -> AbstractAsyncContextManager[FencedTransaction]:
        """Opens a transaction that holds the head's lock.

        Raises:
            LeaseLost: The lease is another's by now.
        """
