"""What an executor reports about an attempt, item by item. The offsets are positions within the attempt, from 1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.session.domain.entities import Failure, Usage


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Which attempt, on which process of which executor."""

    session_id: UUID
    turn_id: UUID
    attempt: int
    executor_id: str
    target: str
    incarnation: UUID


@dataclass(frozen=True, slots=True)
class RawToolUse:
    """A tool call with its whole input as JSON text, however large."""

    tool_use_id: str
    tool_name: str
    input_json: str
    input_hash: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class AgentStarted:
    """The agent process is up and has taken the prompt."""

    offset: int
    cli_session_id: UUID | None
    model: str
    offline_model: bool


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """A piece of an open block; `text_offset` in code points."""

    offset: int
    block: int
    thinking: bool
    text_offset: int
    text: str


@dataclass(frozen=True, slots=True)
class BlockCompleted:
    """A block is complete; `text` is all of it."""

    offset: int
    block: int
    thinking: bool
    text: str
    model: str
    parent_tool_use_id: str


@dataclass(frozen=True, slots=True)
class ToolUsed:
    """The agent asked for a tool call."""

    offset: int
    tool_use: RawToolUse


@dataclass(frozen=True, slots=True)
class DecisionNeeded:
    """The agent waits for a decision on a tool call."""

    offset: int
    tool_use: RawToolUse


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A tool call ended."""

    offset: int
    tool_use_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something worth knowing that changes nothing."""

    offset: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What the model has cost since the last item that told it; `cost_usd` in US dollars."""

    offset: int
    usage: Usage
    cost_usd: float
    model_calls: int


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
class AttemptEnded:
    """The attempt is over; `usage`, `cost_usd` and `model_calls` are what no item before has told."""

    offset: int
    outcome: Outcome
    failure: Failure | None
    usage: Usage
    cost_usd: float
    model_calls: int
    cli_session_id: UUID | None
    structured_output_json: str


TurnItem = (
    AgentStarted
    | BlockDelta
    | BlockCompleted
    | ToolUsed
    | DecisionNeeded
    | ToolEnded
    | Noticed
    | Spent
    | AttemptEnded
)


@dataclass(frozen=True, slots=True)
class EarlierDecision:
    """A decision a person made while no process waited for it."""

    tool_name: str
    input_json: str
    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A tool call of an earlier attempt that has ended; `result` may be its beginning only."""

    tool_use_id: str
    tool_name: str
    input_json: str
    result: str


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """What an executor needs to start an attempt; times in seconds, money in US dollars."""

    options: dict[str, Any]
    prompt: str
    prompt_id: UUID
    cli_session_id: UUID | None
    timeout_seconds: float
    budget_usd: float
    organization_id: UUID
    earlier_decisions: tuple[EarlierDecision, ...]
    possibly_run: tuple[tuple[str, str], ...]
    transcript_position: int = 0
    finished_calls: tuple[FinishedCall, ...] = ()
    background: bool = False


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """An executor, as it described itself.

    Attributes:
        max_background_clients: How many turns of sessions in the background it takes at once; 0 for one that makes no
            difference.
        background_clients: How many it has.
    """

    executor_id: str
    target: str
    incarnation: UUID
    max_live_clients: int
    live_clients: int
    busy_clients: int
    offline_model: bool
    idle_session_ids: frozenset[UUID]
    draining: bool = False
    max_background_clients: int = 0
    background_clients: int = 0

    def takes(self, background: bool) -> bool:
        """Whether a turn of this kind may have a place, if one is free: some are not for sessions in the background."""
        most = self.max_background_clients
        return not (background and most and self.background_clients >= most)
