"""Rows as entities, and what their owners say as columns."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from services.scheduler.domain.entities import RetryPolicy, Task, TaskContent, TaskVariable, VariableType


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
            retry_policy=_retry_policy_of(row.retry_policy),
            max_concurrent_runs=row.max_concurrent_runs,
            run_budget_usd=float(row.run_budget_usd),
        ),
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def columns_of(content: TaskContent) -> dict[str, Any]:
    """The columns of `tasks` that hold what the owner says."""
    policy = content.retry_policy
    return {
        "name": content.name,
        "prompt_template": content.prompt_template,
        "variables": [{**asdict(variable), "type": variable.type.value} for variable in content.variables],
        "sdk_options": dict(content.sdk_options),
        "labels": dict(content.labels),
        "priority": content.priority,
        "run_timeout": content.run_timeout,
        "retry_policy": {
            "maximum_attempts": policy.maximum_attempts,
            "initial_interval_seconds": policy.initial_interval.total_seconds(),
            "backoff_coefficient": policy.backoff_coefficient,
            "maximum_interval_seconds": policy.maximum_interval.total_seconds(),
            "non_retryable_reasons": sorted(policy.non_retryable_reasons),
        },
        "max_concurrent_runs": content.max_concurrent_runs,
        "run_budget_usd": content.run_budget_usd,
    }


def _variable_of(kept: dict[str, Any]) -> TaskVariable:
    return TaskVariable(**{**kept, "type": VariableType(kept["type"])})


def _retry_policy_of(kept: dict[str, Any]) -> RetryPolicy:
    return RetryPolicy(
        maximum_attempts=kept["maximum_attempts"],
        initial_interval=timedelta(seconds=kept["initial_interval_seconds"]),
        backoff_coefficient=kept["backoff_coefficient"],
        maximum_interval=timedelta(seconds=kept["maximum_interval_seconds"]),
        non_retryable_reasons=frozenset(kept["non_retryable_reasons"]),
    )
