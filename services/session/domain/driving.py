"""What a driver knows of the session and the turn it drives, and the changes it makes to them in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.session.domain.entities import Content, Failure, ToolCallDecision, ToolUse, Usage
from services.session.domain.events import (
    Event,
    EventDraft,
    SessionStateChanged,
    TurnEnded,
    TurnStateChanged,
)
from services.session.domain.states import (
    PermissionRequestState,
    SessionState,
    ToolCallState,
    TurnState,
    may_move,
    session_state_for,
)
from services.session.domain.turn_items import AttemptKey

MAX_LOST_ATTEMPTS = 3
"""Attempts that may be lost before a turn fails."""
HEARTBEAT_GRACE = timedelta(seconds=17)
"""After this long without a heartbeat an executor has certainly ended an attempt: one is sent at most 0.5 s after its
time was stored and heard 0.8 s later or never, the executor ends an attempt 15 s after the last it has heard, and has
killed it half a second later."""


@dataclass(slots=True)
class DrivenTurn:
    """The turn a driver works on; changed in step with the database."""

    id: UUID
    number: int
    user_id: UUID
    state: TurnState
    message_id: UUID
    message: Content
    attempt: int
    lost_attempts: int
    applied_offset: int
    executor_id: str | None
    executor_target: str | None
    executor_incarnation: UUID | None
    heartbeat_time: datetime | None
    parked: bool
    interrupt_time: datetime | None
    active_ms: int
    active_since: datetime | None
    start_time: datetime | None
    usage: Usage
    cost_usd: float
    model_calls: int
    request_id: str

    @property
    def correlation(self) -> str:
        """The request id of what is done for this turn: that of the message, or the turn's own where none was kept."""
        return self.request_id or str(self.id)

    def key(self, session_id: UUID) -> AttemptKey | None:
        """Names the stored attempt; None when no executor has been chosen."""
        if self.executor_incarnation is None or not self.executor_id or not self.executor_target:
            return None
        return AttemptKey(
            session_id=session_id,
            turn_id=self.id,
            attempt=self.attempt,
            executor_id=self.executor_id,
            target=self.executor_target,
            incarnation=self.executor_incarnation,
        )

    def active_time(self, now: datetime) -> timedelta:
        """Time spent outside WAITING so far: what the turn's time limit is measured against."""
        running = now - self.active_since if self.active_since else timedelta()
        return timedelta(milliseconds=self.active_ms) + running


@dataclass(slots=True)
class DrivenSession:
    """The session a driver works for; changed in step with the database."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    state: SessionState
    sdk_options: Mapping[str, Any]
    permission_timeout: timedelta
    turn_timeout: timedelta
    cost_usd: float
    cli_session_id: UUID | None
    deleted: bool
    last_executor_id: str | None = None
    background: bool = False

    @property
    def budget_left_usd(self) -> float | None:
        """What may still be spent in US dollars; None when there is no limit."""
        limit = float(self.sdk_options.get("max_budget_usd") or 0)
        return limit - self.cost_usd if limit else None


@dataclass(frozen=True, slots=True)
class Work:
    """What a session has to do: a turn, or, when the session was deleted, its removal."""

    session: DrivenSession
    turn: DrivenTurn | None
    now: datetime


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to project; `draft` is the index of its event among the drafts."""

    draft: int
    id: UUID
    turn_id: UUID
    thinking: bool
    content: Content
    model: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class NewToolCall:
    """A tool call to project; `draft` is the index of its event among the drafts."""

    draft: int
    turn_id: UUID
    attempt: int
    tool_use: ToolUse


@dataclass(frozen=True, slots=True)
class ToolCallUpdate:
    """What has become of a tool call.

    Attributes:
        attempt: The attempt of the turn that made the call.
        asked_anew: The call with the input that it is now to be decided with; what was known of it is over.
    """

    attempt: int
    tool_use_id: str
    state: ToolCallState
    asked_anew: ToolUse | None = None
    decision: ToolCallDecision | None = None
    result: Content | None = None
    result_is_error: bool | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class NewPermissionRequest:
    """A question to a person."""

    id: UUID
    turn_id: UUID
    user_id: UUID
    tool_use: ToolUse
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PermissionUpdate:
    """A question's new state, or the mark that its answer was used."""

    id: UUID
    state: PermissionRequestState | None = None
    consumed: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A permission request as a driver sees it."""

    id: UUID
    tool_use_id: str
    tool_name: str
    input: Content
    input_hash: str
    state: PermissionRequestState
    reason: str
    resolved_by: UUID | None
    ask_time: datetime
    expire_time: datetime
    consumed: bool


@dataclass(slots=True)
class Changes:
    """All that one transaction of a driver changes.

    Attributes:
        drafts: The events.
        turn: New values of the turn's columns.
        session: New values of the session's columns.
        counters: What to add to the session's counters, by column.
    """

    drafts: list[EventDraft] = field(default_factory=list)
    messages: list[NewMessage] = field(default_factory=list)
    tool_calls: list[NewToolCall] = field(default_factory=list)
    tool_call_updates: list[ToolCallUpdate] = field(default_factory=list)
    permission_requests: list[NewPermissionRequest] = field(default_factory=list)
    permission_updates: list[PermissionUpdate] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    turn: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)

    def add(self, event: Event, turn_id: UUID | None) -> int:
        """Drafts an event and returns its index among the drafts."""
        self.drafts.append(EventDraft(event, turn_id))
        return len(self.drafts) - 1

    def count(self, counter: str, by: float = 1) -> None:
        """Adds to one of the session's counters."""
        self.counters[counter] = self.counters.get(counter, 0) + by

    def keep(self, content: Content) -> Content:
        """Notes a text that lies in the blob store, so that its row is written; returns it."""
        if content.content_id is not None:
            self.contents.append(content)
        return content

    def move_session(self, session: DrivenSession, to_state: SessionState) -> None:
        """Changes the session's state, with its event, unless it is that already or the session is not open."""
        if session.state == to_state or session.state not in _OPEN_SESSION_STATES:
            return
        self.add(SessionStateChanged(session.state, to_state), None)
        self.session["state"] = to_state.value
        session.state = to_state

    def move_turn(self, session: DrivenSession, turn: DrivenTurn, to_state: TurnState, now: datetime) -> None:
        """Changes the turn's state, with its event, and the session's state after it.

        The clock of the turn's time limit stops while a person is asked.

        Raises:
            ValueError: The transition table does not have this move.
        """
        if turn.state == to_state:
            return
        if not may_move(turn.state, to_state):
            raise ValueError(f"a turn does not go from {turn.state} to {to_state}")
        if not to_state.final:
            self.add(TurnStateChanged(turn.state, to_state), turn.id)
        running = to_state in (TurnState.STARTING, TurnState.RUNNING)
        if turn.active_since is not None and not running:
            turn.active_ms += int((now - turn.active_since).total_seconds() * 1000)
            turn.active_since = None
        elif turn.active_since is None and running:
            turn.active_since = now
        turn.state = to_state
        self.turn |= {
            "state": to_state.value,
            "active_ms": turn.active_ms,
            "active_since": turn.active_since,
        }
        if not to_state.final:
            self.move_session(session, session_state_for(to_state))

    def end_turn(
        self,
        session: DrivenSession,
        turn: DrivenTurn,
        to_state: TurnState,
        failure: Failure | None,
        now: datetime,
        *,
        structured_output_json: str = "",
    ) -> None:
        """Ends the turn: final state, its event and the session's counters. What else was open in it (tool calls,
        questions) and what comes after it is the caller's to settle in the same transaction."""
        self.move_turn(session, turn, to_state, now)
        started = turn.start_time or now
        duration_ms = max(0, int((now - started).total_seconds() * 1000))
        self.add(
            TurnEnded(
                state=to_state,
                failure=failure,
                usage=turn.usage,
                cost_usd=turn.cost_usd,
                duration_ms=duration_ms,
                model_calls=turn.model_calls,
                structured_output_json=structured_output_json,
            ),
            turn.id,
        )
        self.turn |= {
            "end_time": now,
            "failure_reason": failure.reason if failure else None,
            "failure_message": failure.message if failure else None,
            "structured_output_json": structured_output_json,
            "parked": False,
        }
        self.count("duration_ms", duration_ms)
        if to_state is TurnState.FAILED:
            self.count("errors")


_OPEN_SESSION_STATES = frozenset(
    {
        SessionState.CREATED,
        SessionState.CONNECTING,
        SessionState.ACTIVE,
        SessionState.WAITING,
        SessionState.PROCESSING,
    }
)
