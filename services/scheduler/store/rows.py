"""Rows as entities, and what their owners say as columns."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import timedelta
from typing import Any

from services.scheduler.domain import receivers
from services.scheduler.domain.backfills import Backfill, BackfillState
from services.scheduler.domain.entities import Task, TaskContent, TaskVariable
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import Failure
from services.scheduler.domain.schedules import Schedule, ScheduleContent, ScheduleState, Standing, Timing
from services.scheduler.domain.states import RunState
from services.scheduler.domain.variables import VariableType
from services.scheduler.domain.webhooks import Webhook

_TIMING = [field.name for field in fields(Timing)]


def task_of(row: Any) -> Task:
    """Reads a row of `tasks`."""
    return Task(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        content=TaskContent(
            name=row.name,
            prompt_template=row.prompt_template,
            variables=tuple(_variable_of(kept) for kept in row.variables),
            sdk_options=row.sdk_options,
            labels=row.labels,
            priority=row.priority,
            run_timeout=row.run_timeout,
            retry_policy=retry_policy_of(row.retry_policy),
            max_concurrent_runs=row.max_concurrent_runs,
            run_budget_usd=float(row.run_budget_usd),
            webhook=_webhook_of(row),
        ),
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def task_columns(content: TaskContent) -> dict[str, Any]:
    """The columns of `tasks` that hold what the owner says."""
    return {
        "name": content.name,
        "prompt_template": content.prompt_template,
        "variables": [{**asdict(variable), "type": variable.type.value} for variable in content.variables],
        "sdk_options": dict(content.sdk_options),
        "labels": dict(content.labels),
        "priority": content.priority,
        "run_timeout": content.run_timeout,
        "retry_policy": retry_policy_column(content.retry_policy),
        "max_concurrent_runs": content.max_concurrent_runs,
        "run_budget_usd": content.run_budget_usd,
        **_webhook_columns(content.webhook),
    }


def schedule_of(row: Any) -> Schedule:
    """Reads a row of `schedules`."""
    return Schedule(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        task_id=row.task_id,
        content=ScheduleContent(
            name=row.name,
            timing=Timing(**{name: getattr(row, name) for name in _TIMING}),
            variables=row.variables,
            overlap_policy=OverlapPolicy(row.overlap_policy),
            catch_up_window=row.catch_up_window,
            pause_on_failure=row.pause_on_failure,
            remaining_runs=row.remaining_runs,
        ),
        standing=Standing(
            state=ScheduleState(row.state),
            handled_until=row.handled_until,
            next_fire_time=row.next_fire_time,
            next_due_time=row.next_due_time,
        ),
        note=row.note,
        missed_fires=row.missed_fires,
        last_fire_time=row.last_fire_time,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def schedule_columns(content: ScheduleContent, standing: Standing) -> dict[str, Any]:
    """The columns of `schedules` that hold what the owner says, and where it stands."""
    return {
        **asdict(content.timing),
        **asdict(standing),
        "name": content.name,
        "variables": dict(content.variables),
        "overlap_policy": content.overlap_policy.value,
        "catch_up_window": content.catch_up_window,
        "pause_on_failure": content.pause_on_failure,
        "remaining_runs": content.remaining_runs,
        "state": standing.state.value,
    }


def backfill_of(row: Any) -> Backfill:
    """Reads a row of `backfills`."""
    return Backfill(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        schedule_id=row.schedule_id,
        start_time=row.start_time,
        end_time=row.end_time,
        overlap_policy=OverlapPolicy(row.overlap_policy),
        state=BackfillState(row.state),
        handled_until=row.handled_until,
        fire_count=row.fire_count,
        create_time=row.create_time,
        complete_time=row.complete_time,
    )


def prompt_columns(prompt: str | None, fault: Failure | None = None) -> dict[str, Any]:
    """The columns of `schedules` that say what its runs are told, or why they cannot be."""
    return {
        "prompt": prompt,
        "prompt_fault_reason": fault.reason if fault else None,
        "prompt_fault_message": fault.message if fault else None,
        "prompt_stale": False,
    }


def _webhook_of(row: Any) -> Webhook | None:
    if row.webhook_url is None:
        return None
    return Webhook(row.webhook_url, tuple(RunState(state) for state in row.webhook_states))


def _webhook_columns(webhook: Webhook | None) -> dict[str, Any]:
    if webhook is None:
        return {"webhook_url": None, "webhook_receiver": None, "webhook_states": []}
    return {
        "webhook_url": webhook.url,
        "webhook_receiver": receivers.parse(webhook.url).name,
        "webhook_states": [state.value for state in webhook.states],
    }


def _variable_of(kept: dict[str, Any]) -> TaskVariable:
    return TaskVariable(**{**kept, "type": VariableType(kept["type"])})


def retry_policy_column(policy: RetryPolicy) -> dict[str, Any]:
    """Writes a policy as JSON."""
    return {
        "maximum_attempts": policy.maximum_attempts,
        "initial_interval_seconds": policy.initial_interval.total_seconds(),
        "backoff_coefficient": policy.backoff_coefficient,
        "maximum_interval_seconds": policy.maximum_interval.total_seconds(),
        "non_retryable_reasons": sorted(policy.non_retryable_reasons),
    }


def retry_policy_of(kept: dict[str, Any]) -> RetryPolicy:
    """Reads what `retry_policy_column` wrote."""
    return RetryPolicy(
        maximum_attempts=kept["maximum_attempts"],
        initial_interval=timedelta(seconds=kept["initial_interval_seconds"]),
        backoff_coefficient=kept["backoff_coefficient"],
        maximum_interval=timedelta(seconds=kept["maximum_interval_seconds"]),
        non_retryable_reasons=frozenset(kept["non_retryable_reasons"]),
    )
