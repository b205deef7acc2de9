"""The items of an attempt, in domain terms; `executor.v1.TurnItem` on the wire. Texts are storable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class AgentStarted:
    """The agent process is up and has taken the prompt."""

    cli_session_id: str
    reused: bool
    model: str
    offline_model: bool


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """A piece of an open block; `text_offset` in code points."""

    block: int
    thinking: bool
    text_offset: int
    text: str


@dataclass(frozen=True, slots=True)
class BlockCompleted:
    """A block is complete."""

    block: int
    thinking: bool
    text: str
    model: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call as the model asked for it."""

    tool_use_id: str
    tool_name: str
    input_json: str
    input_hash: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class DecisionNeeded:
    """The agent waits for a decision on a tool call."""

    tool_use: ToolUse


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool call ended."""

    tool_use_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that changes nothing."""

    code: str
    message: str


class Outcome(StrEnum):
    """How an attempt ended; the names of `executor.v1.AttemptEnded.Outcome`."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"
    TIMED_OUT = "TIMED_OUT"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    LOST = "LOST"
    PARKED = "PARKED"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Adds two uses."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        """What came after `other`."""
        return Usage(
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.cache_read_tokens - other.cache_read_tokens,
            self.cache_write_tokens - other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What the model has cost since the last item that told it; `cost_usd` in US dollars."""

    usage: Usage = Usage()
    cost_usd: float = 0.0
    model_calls: int = 0


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The attempt is over; `spent` is what no item before it has told."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    spent: Spent = Spent()
    cli_session_id: str = ""
    structured_output_json: str = ""


Item = (
    AgentStarted
    | BlockDelta
    | BlockCompleted
    | ToolUse
    | DecisionNeeded
    | ToolResult
    | Notice
    | Spent
    | AttemptEnded
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a tool call may run."""

    allow: bool
    reason: str
