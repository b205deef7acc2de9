"""The things the session service keeps, as plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.session.domain.states import (
    PermissionRequestState,
    SessionMode,
    SessionState,
    ToolCallState,
    TurnState,
)

MAX_INLINE_BYTES = 256 * 1024
"""Texts above this size, in bytes of UTF-8, go to the blob store."""
PREVIEW_CHARACTERS = 4096
"""Code points of a large text that stay in the log."""
MAX_QUEUED_TURNS = 20
"""Turns that may wait in one session."""


@dataclass(frozen=True, slots=True)
class Content:
    """A text, in place or by reference.

    Attributes:
        text: The text, or its first `PREVIEW_CHARACTERS` when `content_id` is set.
        content_id: Where the whole text lies, when it is larger than `MAX_INLINE_BYTES`.
        size_bytes: Size of the whole text in bytes of UTF-8; 0 when it is in place.
        sha256: Hexadecimal SHA-256 of the whole text; empty when it is in place.
    """

    text: str
    content_id: UUID | None = None
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the model API counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended badly: a stable name and a sentence for a person."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Counters:
    """What a session has counted; `cost_usd` in US dollars, `duration_ms` in milliseconds."""

    messages: int = 0
    tool_calls: int = 0
    turns: int = 0
    errors: int = 0
    retries: int = 0
    permission_checks: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation with an agent and the directory it works in.

    `sdk_options` is the JSON form of `aiagent.session.v1.AgentOptions`: the domain reads the few fields it needs
    (`allowed_tools`, `disallowed_tools`, `permission_mode`, `max_budget_usd`) and hands the rest on.
    """

    id: UUID
    organization_id: UUID
    user_id: UUID
    name: str
    mode: SessionMode
    state: SessionState
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    permission_timeout: timedelta
    turn_timeout: timedelta
    counters: Counters
    current_turn_id: UUID | None
    last_sequence: int
    offline_model: bool
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """The version as clients see it (AIP-154)."""
        return f'"{self.version}"'


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the user and all the agent does about it."""

    id: UUID
    session_id: UUID
    organization_id: UUID
    user_id: UUID
    number: int
    state: TurnState
    attempt: int
    message: Content
    result: Content | None
    failure: Failure | None
    usage: Usage
    cost_usd: float
    tool_calls: int
    model_calls: int
    structured_output_json: str
    first_sequence: int
    last_sequence: int
    queue_position: int
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the conversation. `role` is USER or ASSISTANT, `type` is TEXT or THINKING."""

    id: UUID
    session_id: UUID
    turn_id: UUID
    sequence: int
    role: str
    type: str
    content: Content
    model: str
    parent_tool_use_id: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call as the model asked for it; `input_json` is the input as JSON text."""

    tool_use_id: str
    tool_name: str
    input_json: Content
    input_hash: str
    parent_tool_use_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallDecision:
    """Who or what decided a tool call; `source` is a name of `events.v1.ToolDecision.Source`."""

    allowed: bool
    source: str
    reason: str
    user_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call with its decision and its result."""

    session_id: UUID
    turn_id: UUID
    attempt: int
    tool_use: ToolUse
    state: ToolCallState
    decision: ToolCallDecision | None
    result: Content | None
    result_is_error: bool
    sequence: int
    create_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """A question to a person: may this tool call run?"""

    id: UUID
    session_id: UUID
    organization_id: UUID
    user_id: UUID
    turn_id: UUID
    tool_use: ToolUse
    state: PermissionRequestState
    reason: str
    resolved_by: UUID | None
    create_time: datetime
    expire_time: datetime
    resolve_time: datetime | None


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An entry of the event log."""

    session_id: UUID
    sequence: int
    turn_id: UUID | None
    kind: str
    payload: bytes
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a session's log, and the lease of its driver."""

    session_id: UUID
    organization_id: UUID
    last_sequence: int
    lease_holder: str | None
    lease_epoch: int
    lease_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive a session, until it expires or a higher epoch is given out."""

    session_id: UUID
    organization_id: UUID
    holder: str
    epoch: int
