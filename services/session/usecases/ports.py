"""The ports of the use cases: what they need of the outside, as protocols that adapters fulfil."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol
from uuid import UUID

from services.session.domain.entities import LogEvent
from services.session.domain.turn_items import AttemptKey, AttemptPlan, ExecutorInfo, TurnItem


class LiveFeedPort(Protocol):
    """Tells watchers and drivers what is new. A hint: losing it loses nothing, it only takes longer."""

    async def publish_events(self, session_id: UUID, events: Sequence[LogEvent]) -> None:
        """Publishes events that are committed."""

    async def publish_delta(
        self,
        session_id: UUID,
        after_sequence: int,
        turn_id: UUID,
        attempt: int,
        block: int,
        text_offset: int,
        text: str,
        thinking: bool,
    ) -> None:
        """Publishes a piece of an open block; `text_offset` in code points."""

    async def wake_driver(self, session_id: UUID) -> None:
        """Wakes the session's driver, wherever it runs."""


class BlobStorePort(Protocol):
    """Keeps texts that are too large for the event log."""

    async def put(self, session_id: UUID, content_id: UUID, data: bytes) -> None:
        """Stores `data` durably before it returns."""

    async def get(self, session_id: UUID, content_id: UUID) -> bytes:
        """Reads all of a text; at most 1 GiB by the writers' limits."""

    async def delete_session(self, session_id: UUID) -> None:
        """Removes everything of a session; nothing there is no error."""


class WorkspaceStorePort(Protocol):
    """Keeps the sessions' directories."""

    def path(self, session_id: UUID) -> str:
        """Absolute path of a session's workspace, the same on every executor."""

    async def delete(self, session_id: UUID) -> None:
        """Removes a session's workspace; nothing there is no error."""


class ExecutorPort(Protocol):
    """The executors. Every call about an attempt carries the lease epoch and the executor's incarnation."""

    async def list_executors(self) -> list[ExecutorInfo]:
        """Asks all configured executors; those that do not answer within a second are left out."""

    def run(self, key: AttemptKey, lease_epoch: int, plan: AttemptPlan) -> AsyncIterator[Sequence[TurnItem]]:
        """Starts an attempt and streams its items; an empty batch first, once the executor has taken the call.

        Raises:
            ServiceError: as documented at ExecutorService.RunTurn.
        """

    def attach(
        self, key: AttemptKey, lease_epoch: int, after_offset: int
    ) -> AsyncIterator[Sequence[TurnItem]]:
        """Takes up the items of an attempt after an offset; an empty batch first, as with `run`.

        Raises:
            ServiceError: as documented at ExecutorService.AttachTurn.
        """

    async def acknowledge(self, key: AttemptKey, lease_epoch: int, offset: int) -> None:
        """Lets the executor forget everything up to an offset."""

    async def decide(
        self, key: AttemptKey, lease_epoch: int, tool_use_id: str, allow: bool, reason: str
    ) -> None:
        """Tells the waiting agent whether a tool call may run; a call that no longer waits is no error."""

    async def interrupt(self, key: AttemptKey, lease_epoch: int, *, park: bool) -> None:
        """Stops an attempt; one that has ended is no error."""

    async def heartbeat(self, key: AttemptKey, lease_epoch: int) -> None:
        """Says that the driver lives."""

    async def forget(self, session_id: UUID, lease_epoch: int) -> None:
        """Lets all executors end and forget a session."""
