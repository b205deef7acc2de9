"""The things the scheduler keeps, as plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

DEFAULT_RUN_TIMEOUT = timedelta(hours=1)


class VariableType(StrEnum):
    """What a variable's value may be."""

    STRING = "STRING"
    INTEGER = "INTEGER"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"
    JSON = "JSON"


@dataclass(frozen=True, slots=True)
class TaskVariable:
    """A variable of a prompt template; `default` is a JSON value, None for no default."""

    name: str
    type: VariableType = VariableType.STRING
    required: bool = False
    default: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What follows an attempt that failed: another one, after a pause that grows with each.

    Attributes:
        maximum_attempts: Attempts of a run in all.
        initial_interval: The pause before the second.
        backoff_coefficient: By how much each pause is longer than the one before.
        maximum_interval: The longest pause.
        non_retryable_reasons: Failures after which no attempt follows.
    """

    maximum_attempts: int = 3
    initial_interval: timedelta = timedelta(seconds=10)
    backoff_coefficient: float = 2.0
    maximum_interval: timedelta = timedelta(minutes=10)
    non_retryable_reasons: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TaskContent:
    """What its owner says of a task.

    Attributes:
        name: What it is called.
        prompt_template: A Jinja2 template over the variables.
        variables: Those of the template.
        sdk_options: The JSON form of `aiagent.session.v1.AgentOptions`; handed on to the session service.
        labels: The owner's own.
        priority: Of its runs, the higher the sooner.
        run_timeout: How long a run may take in all.
        retry_policy: What follows an attempt that failed.
        max_concurrent_runs: How many runs at once; 0 for no limit.
        run_budget_usd: What a run may spend in US dollars; 0 for no limit.
    """

    name: str
    prompt_template: str
    variables: tuple[TaskVariable, ...]
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    priority: int
    run_timeout: timedelta
    retry_policy: RetryPolicy
    max_concurrent_runs: int
    run_budget_usd: float


@dataclass(frozen=True, slots=True)
class Task:
    """Work for an agent that can be done more than once."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    content: TaskContent
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """The version as clients see it (AIP-154)."""
        return f'"{self.version}"'
