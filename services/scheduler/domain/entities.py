"""The things the scheduler keeps, as plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.variables import Variable
from services.scheduler.domain.webhooks import Webhook

DEFAULT_RUN_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class TaskVariable(Variable):
    """A variable of a task's prompt template, with what it is for."""

    description: str = ""


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
        webhook: Whom to tell when a run ends; None for nobody.
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
    webhook: Webhook | None = None


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
