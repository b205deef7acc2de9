"""Runs of tasks: what is kept of them, and what becomes of one when its turn is over.

A run is a copy of what its task said when it was made. An attempt at it is a session of its own with one turn in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

from services.scheduler.domain.entities import TaskContent
from services.scheduler.domain.overlap import SkipReason
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.states import RunState

MAX_TURN_TIMEOUT: Final = timedelta(hours=24)
"""The longest that the session service gives to a turn."""
BUDGET_EXCEEDED: Final = "BUDGET_EXCEEDED"
RUN_TIMEOUT: Final = "RUN_TIMEOUT"
TURN_FAILED: Final = "TURN_FAILED"
TAKE_OVERS_EXHAUSTED: Final = "TAKE_OVERS_EXHAUSTED"
MOST_TAKE_OVERS: Final = 20
"""How often an attempt is taken over from workers that did not give it back. It would be for ever where its end cannot
be recorded, or where it ends each worker that carries it."""
MOST_LATE_TAKE_OVERS: Final = 3
"""The same of a run whose time is up: one is enough to learn what came of it, unless that worker dies, too."""
_PAUSING_STATES: Final = frozenset({RunState.FAILED, RunState.TIMED_OUT})
_MOST_NOTED_CHARACTERS: Final = 200
RUN_UNREADABLE: Final = "RUN_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the model API counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended badly: a stable name, and a sentence for a person."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RunContent:
    """What a run does, from its task at the time it was made; fields as in `TaskContent`.

    Attributes:
        prompt: The rendered template.
        variables: What it was rendered with.
    """

    name: str
    prompt: str
    variables: Mapping[str, Any]
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    priority: int
    run_timeout: timedelta
    retry_policy: RetryPolicy
    run_budget_usd: float

    @classmethod
    def of(cls, task: TaskContent, variables: Mapping[str, Any], prompt: str) -> RunContent:
        """Returns what a run of a task does."""
        return cls(
            name=task.name,
            prompt=prompt,
            variables=variables,
            sdk_options=task.sdk_options,
            labels=task.labels,
            priority=task.priority,
            run_timeout=task.run_timeout,
            retry_policy=task.retry_policy,
            run_budget_usd=task.run_budget_usd,
        )


@dataclass(frozen=True, slots=True)
class RunAttempt:
    """One attempt at a run."""

    attempt: int
    state: RunState
    session_id: UUID | None
    turn_id: UUID | None
    failure: Failure | None
    usage: Usage
    cost_usd: float
    start_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a task; times and numbers as `aiagent.scheduler.v1.TaskRun` tells them.

    Attributes:
        version: Rises with every change of the run, and of its attempts.
    """

    id: UUID
    organization_id: UUID
    user_id: UUID
    task_id: UUID
    schedule_id: UUID | None
    backfill_id: UUID | None
    retry_of: UUID | None
    fire_time: datetime | None
    due_time: datetime
    content: RunContent
    state: RunState
    skip_reason: SkipReason | None
    attempt: int
    session_id: UUID | None
    result: str
    structured_output_json: str
    failure: Failure | None
    usage: Usage
    cost_usd: float
    cancel_requested: bool
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    version: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that a worker holds. The epoch is its fencing token: a write under an older one is refused.

    Attributes:
        run_id: The run.
        organization_id: Its tenant.
        user_id: Its owner, for whom its sessions are.
        holder: The worker.
        epoch: Rises with every worker that takes the run.
        attempt: The attempt under way, from 1.
        content: What to do.
        taken_over: Whether the attempt was begun by another worker, or before this one gave the run back.
        session_id: The attempt's session, as far as it was recorded.
        turn_id: Its turn, as far as it was recorded.
        spent_usd: What the attempts before this one cost.
        seconds_left: Of the run's timeout, when it was claimed.
        cancel_requested: Whether somebody had asked for its end then.
        start_delay_seconds: At its first attempt: how long after it was due that began; None when taken over.
    """

    run_id: UUID
    organization_id: UUID
    user_id: UUID
    holder: str
    epoch: int
    attempt: int
    content: RunContent
    taken_over: bool
    session_id: UUID | None
    turn_id: UUID | None
    spent_usd: float
    seconds_left: float
    cancel_requested: bool
    start_delay_seconds: float | None = None

    def request_id(self, what: str) -> str:
        """Names a call to the session service, the same for every worker that makes it for this attempt.

        Args:
            what: the call, as `session`.
        """
        return str(uuid5(self.run_id, f"{self.attempt}/{what}"))

    @property
    def budget_left_usd(self) -> float | None:
        """What the attempt may spend; None for no limit of the run's own. Zero or less: nothing."""
        if not self.content.run_budget_usd:
            return None
        return round(self.content.run_budget_usd - self.spent_usd, 6)


class TurnState(StrEnum):
    """Where the turn of an attempt stands, as far as a run is concerned."""

    OPEN = "OPEN"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"
    TIMED_OUT = "TIMED_OUT"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"


@dataclass(frozen=True, slots=True)
class TurnNow:
    """A turn as the session service tells it."""

    state: TurnState
    result: str = ""
    structured_output_json: str = ""
    failure: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: The attempt's final state, and the run's unless another attempt follows.
        failure: Why it ended badly.
        final: Whether nothing may follow, whatever the retry policy says.
    """

    state: RunState
    result: str = ""
    structured_output_json: str = ""
    failure: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float = 0.0
    final: bool = False


CANCELLED: Final = Outcome(RunState.CANCELLED)
NO_BUDGET_LEFT: Final = Outcome(
    RunState.FAILED,
    failure=Failure(BUDGET_EXCEEDED, "the attempts before have used up the run's budget"),
    final=True,
)


UNREADABLE: Final = Outcome(
    RunState.FAILED,
    failure=Failure(RUN_UNREADABLE, "this version of the scheduler cannot read what the run is to do"),
    final=True,
)


def timed_out(content: RunContent) -> Outcome:
    """Returns the end of an attempt whose run's time is up."""
    seconds = content.run_timeout.total_seconds()
    return Outcome(
        RunState.TIMED_OUT, failure=Failure(RUN_TIMEOUT, f"the run took longer than {seconds:g} s")
    )


def given_up(claim: Claim) -> Outcome:
    """Returns the end of an attempt that was taken over as often as may be: nothing that a turn may have said is in it.

    Args:
        claim: the run, as the last one finds it.
    """
    if claim.cancel_requested:
        return CANCELLED
    if claim.seconds_left <= 0:
        return timed_out(claim.content)
    why = f"its worker was lost {MOST_TAKE_OVERS} times, or could not record its end"
    return Outcome(RunState.FAILED, failure=Failure(TAKE_OVERS_EXHAUSTED, why), final=True)


def outcome_of(turn: TurnNow, content: RunContent) -> Outcome:
    """Returns what an attempt came to whose turn is over.

    A person who interrupts the turn in its session ends the run as one does who cancels it.
    """
    match turn.state:
        case TurnState.SUCCEEDED:
            return Outcome(
                RunState.SUCCEEDED,
                result=turn.result,
                structured_output_json=turn.structured_output_json,
                usage=turn.usage,
                cost_usd=turn.cost_usd,
            )
        case TurnState.INTERRUPTED:
            return Outcome(RunState.CANCELLED, usage=turn.usage, cost_usd=turn.cost_usd)
        case TurnState.TIMED_OUT:
            failure = turn.failure or timed_out(content).failure
            return Outcome(RunState.TIMED_OUT, failure=failure, usage=turn.usage, cost_usd=turn.cost_usd)
        case _:
            spent = turn.state is TurnState.BUDGET_EXCEEDED
            known = turn.failure or Failure(
                BUDGET_EXCEEDED if spent else TURN_FAILED, "the turn gave no reason"
            )
            return Outcome(
                RunState.FAILED, failure=known, usage=turn.usage, cost_usd=turn.cost_usd, final=spent
            )


def outcome_of_stopped(turn: TurnNow, content: RunContent, *, cancelled: bool) -> Outcome:
    """Returns what an attempt came to that was to end, because somebody asked for it or its run's time is up.

    Args:
        turn: its turn; open if it could not be stopped, or nothing was sent.
        content: what its run does.
        cancelled: whether somebody asked for it.
    """
    if turn.state is TurnState.SUCCEEDED or (cancelled and turn.state is not TurnState.OPEN):
        return outcome_of(turn, content)
    end = CANCELLED if cancelled else timed_out(content)
    return replace(end, usage=turn.usage, cost_usd=turn.cost_usd)


def pause_after(claim: Claim, outcome: Outcome, draw: Callable[[], float]) -> timedelta | None:
    """How long to wait before the next attempt; None if there is to be none.

    Args:
        claim: the run.
        outcome: how its attempt ended.
        draw: a source of chance, 0 to 1 without 1.
    """
    if outcome.state is not RunState.FAILED or outcome.final or outcome.failure is None:
        return None
    return claim.content.retry_policy.pause_after(claim.attempt, outcome.failure.reason, draw)


def state_after(outcome: Outcome, *, retries: bool, in_time: bool, cancelled: bool) -> RunState:
    """Returns what becomes of a run whose attempt is over.

    Args:
        outcome: what the attempt came to.
        retries: whether the retry policy has another one follow, after a pause (`pause_after`).
        in_time: whether the run's time reaches beyond that pause.
        cancelled: whether somebody has asked for its end by now.
    """
    if not retries:
        return outcome.state
    if cancelled:
        return RunState.CANCELLED
    return RunState.QUEUED if in_time else outcome.state


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that is over, as others are told; fields as in `aiagent.events.v1.TaskRunEndedFact`."""

    run_id: UUID
    organization_id: UUID
    user_id: UUID
    task_id: UUID
    schedule_id: UUID | None
    state: RunState
    failure: Failure | None
    attempts: int
    session_id: UUID | None
    usage: Usage
    cost_usd: float
    start_time: datetime | None
    end_time: datetime

    @property
    def pause_note(self) -> str | None:
        """What is noted on a schedule that pauses on failure, where this run is reason to; None where it is none."""
        if self.state not in _PAUSING_STATES:
            return None
        reason = (
            self.failure.reason[:_MOST_NOTED_CHARACTERS] if self.failure is not None else self.state.value
        )
        return f"paused since run {self.run_id} ended as {self.state.value}: {reason}"


class LeaseLost(Exception):
    """Another worker has the run, or it is gone: what this one knows of it is worth nothing any more."""
