"""Rows of `runs` and `run_attempts` as entities, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog

from services.scheduler.domain.overlap import SkipReason
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import (
    Claim,
    Failure,
    Run,
    RunAttempt,
    RunContent,
    Usage,
)
from services.scheduler.domain.states import RunState
from services.scheduler.store.rows import retry_policy_column, retry_policy_of
from services.scheduler.store.tables import runs

_log = structlog.get_logger(__name__)
UNREAD_CONTENT: Final = (
    sa.literal("").label("prompt"),
    sa.literal({}, runs.c.variables.type).label("variables"),
)
"""In place of what is large of a run's content, for whoever does not need it."""

TOKENS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")

_UNKNOWN: Final = RunContent("", "", {}, {}, {}, 0, timedelta(), RetryPolicy(), 0.0)


def run_of(row: Any) -> Run:
    """Reads a row of `runs`; columns that a list does not ask for are empty."""
    return Run(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        task_id=row.task_id,
        schedule_id=row.schedule_id,
        backfill_id=row.backfill_id,
        retry_of=row.retry_of,
        fire_time=row.fire_time,
        due_time=row.due_time,
        content=content_of(row),
        state=RunState(row.state),
        skip_reason=SkipReason(row.skip_reason) if row.skip_reason is not None else None,
        attempt=row.attempt,
        session_id=row.session_id,
        result=row.result_text or "",
        structured_output_json=row.structured_output_json,
        failure=failure_of(row),
        usage=usage_of(row),
        cost_usd=float(row.cost_usd),
        cancel_requested=row.cancel_time is not None,
        create_time=row.create_time,
        start_time=row.start_time,
        end_time=row.end_time,
        version=row.version,
    )


def attempt_of(row: Any) -> RunAttempt:
    """Reads a row of `run_attempts`."""
    return RunAttempt(
        attempt=row.number,
        state=RunState(row.state),
        session_id=row.session_id,
        turn_id=row.turn_id,
        failure=failure_of(row),
        usage=usage_of(row),
        cost_usd=float(row.cost_usd),
        start_time=row.start_time,
        end_time=row.end_time,
    )


def claim_of(row: Any, *, taken_over: bool, content: RunContent | None = None) -> Claim:
    """Reads a row of `runs` that was claimed, with the turn of its attempt and `seconds_left`.

    Args:
        row: The row.
        taken_over: Whether another worker had it.
        content: What it does, in place of what the row says.
    """
    first = row.attempt == 1 and not taken_over
    return Claim(
        run_id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        holder=row.lease_holder,
        epoch=row.epoch,
        attempt=row.attempt,
        content=content or content_of(row),
        taken_over=taken_over,
        session_id=row.attempt_session_id,
        turn_id=row.attempt_turn_id,
        # Of attempts that have ended: the one under way has added nothing yet.
        spent_usd=float(row.cost_usd),
        seconds_left=float(row.seconds_left),
        cancel_requested=row.cancel_time is not None,
        # A clock is set back now and then.
        start_delay_seconds=max(0.0, (row.start_time - row.due_time).total_seconds()) if first else None,
    )


def claims_of(rows: Iterable[Any], *, taken_over: bool) -> tuple[list[Claim], list[Claim]]:
    """Reads rows of `runs` that were claimed, each by itself: one that another version wrote stops no other.

    Returns:
        Those that can be read, and the others, of whose content nothing is known.
    """
    found: list[Claim] = []
    unreadable: list[Claim] = []
    for row in rows:
        try:
            found.append(claim_of(row, taken_over=taken_over))
        except Exception:
            _log.exception("run not understood; it is ended", run_id=str(row.id))
            unreadable.append(claim_of(row, taken_over=taken_over, content=_UNKNOWN))
    return found, unreadable


def content_of(row: Any) -> RunContent:
    """Reads what a run does."""
    return RunContent(
        name=row.name,
        prompt=row.prompt,
        variables=row.variables,
        sdk_options=row.sdk_options,
        labels=row.labels,
        priority=row.priority,
        run_timeout=row.run_timeout,
        retry_policy=retry_policy_of(row.retry_policy),
        run_budget_usd=float(row.run_budget_usd),
    )


def content_columns(content: RunContent) -> dict[str, Any]:
    """The columns of `runs` that say what a run does."""
    return {
        "name": content.name,
        "prompt": content.prompt,
        "variables": dict(content.variables),
        "sdk_options": dict(content.sdk_options),
        "labels": dict(content.labels),
        "priority": content.priority,
        "run_timeout": content.run_timeout,
        "retry_policy": retry_policy_column(content.retry_policy),
        "run_budget_usd": content.run_budget_usd,
    }


def failure_of(row: Any) -> Failure | None:
    """Reads why a run or an attempt ended badly."""
    return Failure(row.failure_reason, row.failure_message) if row.failure_reason is not None else None


def usage_of(row: Any) -> Usage:
    """Reads the tokens of a run or an attempt."""
    return Usage(**{name: getattr(row, name) for name in TOKENS})
