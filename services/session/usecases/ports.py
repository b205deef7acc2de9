"""The ports of the use cases: what they need of the outside, as protocols that adapters fulfil."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.session.domain.entities import (
    Content,
    Head,
    LogEvent,
    Message,
    PermissionRequest,
    Session,
    ToolCall,
    ToolUse,
    Turn,
)
from services.session.domain.events import EventDraft
from services.session.domain.gate import Delta, GateEvent
from services.session.domain.states import PermissionRequestState
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

    def read(self, session_id: UUID, content_id: UUID) -> AsyncGenerator[bytes, None]:
        """Reads a text piece by piece.

        Raises:
            ServiceError: NOT_FOUND with CONTENT_NOT_FOUND: its session was deleted meanwhile.
        """

    async def delete_session(self, session_id: UUID) -> None:
        """Removes everything of a session; nothing there is no error."""


class WorkspaceStorePort(Protocol):
    """Keeps the sessions' directories."""

    def path(self, session_id: UUID) -> str:
        """Absolute path of a session's workspace, the same on every executor."""

    async def create(self, session_id: UUID) -> None:
        """Makes an empty workspace."""

    async def delete(self, session_id: UUID) -> None:
        """Removes a session's workspace; nothing there is no error."""


class DriverWaker(Protocol):
    """Wakes the driver of a session, here or on another replica."""

    async def wake(self, session_id: UUID) -> None:
        """Wakes it; a hint that may be lost, since every replica sweeps."""


class ExecutorPort(Protocol):
    """The executors. Every call about an attempt carries the lease epoch and the executor's incarnation."""

    async def list_executors(self) -> list[ExecutorInfo]:
        """Asks all configured executors; those that do not answer within a second are left out."""

    def run(self, key: AttemptKey, lease_epoch: int, plan: AttemptPlan) -> AsyncGenerator[Sequence[TurnItem]]:
        """Starts an attempt and streams its items; an empty batch first, once the executor has taken the call.

        Raises:
            ServiceError: as documented at ExecutorService.RunTurn.
        """

    def attach(
        self, key: AttemptKey, lease_epoch: int, after_offset: int
    ) -> AsyncGenerator[Sequence[TurnItem]]:
        """Takes up the items of an attempt after an offset; an empty batch first, as with `run`.

        Raises:
            ServiceError: as documented at ExecutorService.AttachTurn.
        """

    async def acknowledge(self, key: AttemptKey, lease_epoch: int, offset: int) -> None:
        """Lets the executor forget everything up to an offset."""

    async def decide(
        self, key: AttemptKey, lease_epoch: int, tool_use: ToolUse, allow: bool, reason: str
    ) -> None:
        """Tells the waiting agent whether a tool call may run with this input; one that no longer waits is no error."""

    async def interrupt(self, key: AttemptKey, lease_epoch: int, *, park: bool) -> None:
        """Stops an attempt; one that has ended is no error."""

    async def heartbeat(self, key: AttemptKey, lease_epoch: int) -> None:
        """Says that the driver lives."""

    async def forget(self, session_id: UUID, lease_epoch: int, ran_on: Collection[str]) -> None:
        """Lets all executors end and forget a session, with whoever answers of those at `ran_on` that are not known."""


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to list; `user_id` None means all that the caller may see."""

    user_id: UUID | None = None
    states: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    name_contains: str = ""
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to create."""

    id: UUID
    name: str
    mode: str
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    permission_timeout: timedelta
    turn_timeout: timedelta


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to queue."""

    id: UUID
    owner_id: UUID
    message_id: UUID
    message: Content
    request_id: str


class SessionTransaction(Protocol):
    """A caller's transaction: it sees what the caller may see, and commits when its block ends without an error.

    What is not there and what is not the caller's is answered alike: NOT_FOUND.
    """

    async def once(
        self,
        method: str,
        request_id: str,
        request: bytes,
        run: Callable[[], Awaitable[bytes]],
        *,
        lives_with: UUID | None = None,
    ) -> bytes:
        """Does a mutation once for each request id; see `kernel.db.idempotency.once`.

        Args:
            lives_with: the session whose end is the id's; by default it is kept for 24 hours.
        """

    async def insert_session(self, new: NewSession) -> None:
        """Creates a session with an empty log."""

    async def update_session(
        self, session_id: UUID, values: Mapping[str, Any], counters: Mapping[str, int] | None = None
    ) -> None:
        """Changes columns of a session and adds to its counters, and with them changes its version."""

    async def mark_deleted(self, session_id: UUID) -> None:
        """Makes a session invisible; a driver removes it."""

    async def lock_head(self, session_id: UUID) -> Head:
        """Locks the head of a session's log until the end of the transaction."""

    async def append(self, head: Head, drafts: Sequence[EventDraft]) -> list[LogEvent]:
        """Appends events to the log; once in a transaction."""

    async def insert_turn(self, head: Head, new: NewTurn, first_sequence: int, last_sequence: int) -> None:
        """Creates a queued turn with the message that started it."""

    async def request_interrupt(self, turn_id: UUID) -> bool:
        """Notes the wish to stop a turn; False when it was noted before."""

    async def end_queued_turn(self, turn_id: UUID, last_sequence: int) -> None:
        """Ends a turn that has not begun, as interrupted."""

    async def resolve_permission_request(
        self, request_id: UUID, state: PermissionRequestState, reason: str
    ) -> None:
        """Stores a person's answer."""

    async def get_session(self, session_id: UUID) -> Session:
        """Returns a session."""

    async def list_sessions(self, wanted: SessionFilter, before: UUID | None, limit: int) -> list[Session]:
        """Returns sessions, the newest first."""

    async def get_turn(self, session_id: UUID, turn_id: UUID) -> Turn:
        """Returns a turn."""

    async def list_turns(
        self, session_id: UUID, states: Sequence[str], before: int | None, limit: int
    ) -> list[Turn]:
        """Returns turns, the newest first."""

    async def open_turns(self, session_id: UUID) -> list[Turn]:
        """Returns the turns that are not over; the one that has begun first."""

    async def list_messages(
        self, session_id: UUID, turn_id: UUID | None, roles: Sequence[str], after: int, limit: int
    ) -> list[Message]:
        """Returns messages in order."""

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

    async def list_events(
        self, session_id: UUID, turn_id: UUID | None, after: int, limit: int, most_bytes: int | None = None
    ) -> list[LogEvent]:
        """Returns events in order: fewer than `limit`, and less than `most_bytes` of payload, when the log ends."""

    async def list_permission_requests(
        self,
        session_id: UUID | None,
        user_id: UUID | None,
        states: Sequence[str],
        after: UUID | None,
        limit: int,
    ) -> list[PermissionRequest]:
        """Returns permission requests, the oldest first."""

    async def get_permission_request(self, session_id: UUID, request_id: UUID) -> PermissionRequest:
        """Returns a permission request."""

    async def get_content(self, session_id: UUID, content_id: UUID) -> Content:
        """Returns where a large text lies."""

    async def now(self) -> datetime:
        """The database's time."""


class SessionStore(Protocol):
    """The database as use cases see it."""

    def begin(self, caller: Caller) -> AbstractAsyncContextManager[SessionTransaction]:
        """Opens a caller's transaction."""

    async def ahead(self, turn_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How many turns of other sessions, anybody's, wait for a place ahead of each of those that are queued."""


@dataclass(frozen=True, slots=True)
class EventsFrame:
    """Events that were written; `size_bytes` is what they hold in memory, about."""

    events: tuple[GateEvent, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HeadFrame:
    """The log goes up to here."""

    sequence: int


@dataclass(frozen=True, slots=True)
class DeletedFrame:
    """The session is gone."""


@dataclass(frozen=True, slots=True)
class DrainFrame:
    """The server is shutting down."""


Frame = EventsFrame | Delta | HeadFrame | DeletedFrame | DrainFrame


class SubscriptionPort(Protocol):
    """What one watcher is told."""

    overflowed: bool

    async def take(self, timeout_seconds: float) -> list[Frame]:
        """Waits for frames, at most so long, and takes all there are."""


class WatchFeedPort(Protocol):
    """The live feed as watchers see it."""

    def subscribe(self, session_id: UUID) -> AbstractAsyncContextManager[SubscriptionPort]:
        """Tells of everything published from now on."""

    async def block(self, session_id: UUID) -> Delta | None:
        """The text so far of the session's open block, if one is known."""
