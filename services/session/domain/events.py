"""What the event log can say. Each is one kind of `aiagent.events.v1.SessionEventPayload`, in domain terms."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.session.domain.entities import Content, Failure, ToolCallDecision, ToolUse, Usage
from services.session.domain.states import PermissionRequestState, SessionState, TurnState


@dataclass(frozen=True, slots=True)
class SessionStateChanged:
    """The session changed its state."""

    from_state: SessionState
    to_state: SessionState


@dataclass(frozen=True, slots=True)
class UserMessage:
    """A user's message was accepted."""

    message_id: UUID
    content: Content
    user_id: UUID


@dataclass(frozen=True, slots=True)
class TurnStateChanged:
    """The turn changed its state; `from_state` is None when it is new."""

    from_state: TurnState | None
    to_state: TurnState


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An attempt at the turn began."""

    attempt: int
    executor_id: str


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """The agent finished a block of text or thinking."""

    message_id: UUID
    attempt: int
    block: int
    thinking: bool
    content: Content
    model: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class ToolUseRequested:
    """The agent asked for a tool call."""

    tool_use: ToolUse


@dataclass(frozen=True, slots=True)
class ToolDecided:
    """It was decided whether a tool call may run."""

    tool_use: ToolUse
    decision: ToolCallDecision
    permission_request_id: UUID | None


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A tool call ended."""

    tool_use_id: str
    content: Content
    is_error: bool


@dataclass(frozen=True, slots=True)
class PermissionRequested:
    """A person is asked."""

    permission_request_id: UUID
    tool_use: ToolUse
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PermissionResolved:
    """A question found its end."""

    permission_request_id: UUID
    state: PermissionRequestState
    reason: str
    user_id: UUID | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that changes nothing."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn reached its final state; `cost_usd` in US dollars, `duration_ms` in milliseconds."""

    state: TurnState
    failure: Failure | None
    usage: Usage
    cost_usd: float
    duration_ms: int
    model_calls: int
    structured_output_json: str


@dataclass(frozen=True, slots=True)
class WorkspaceUploaded:
    """Files were put into the workspace."""

    file_count: int
    size_bytes: int
    path: str
    user_id: UUID


@dataclass(frozen=True, slots=True)
class InterruptRequested:
    """Someone asked to stop the turn."""

    user_id: UUID
    reason: str


Event = (
    SessionStateChanged
    | UserMessage
    | TurnStateChanged
    | AttemptStarted
    | AssistantMessage
    | ToolUseRequested
    | ToolDecided
    | ToolEnded
    | PermissionRequested
    | PermissionResolved
    | Notice
    | TurnEnded
    | WorkspaceUploaded
    | InterruptRequested
)


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that has no place in the log yet; `turn_id` is None for events of the session itself."""

    event: Event
    turn_id: UUID | None = None
