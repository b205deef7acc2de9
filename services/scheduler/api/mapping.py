"""Requests of `aiagent.scheduler.v1` as the domain's values, and entities as messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from aiagent.scheduler.v1 import run_pb2, task_pb2, webhook_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.scheduler.domain.entities import Task, TaskContent, TaskVariable
from services.scheduler.domain.errors import invalid_request
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.states import RunState
from services.scheduler.domain.variables import VariableType
from services.scheduler.domain.webhooks import Webhook

_STATES = run_pb2.TaskRun.State
_TYPES = task_pb2.TaskVariable.Type
_DEFAULTS = RetryPolicy()


def time(moment: datetime) -> Timestamp:
    """Maps a time."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def optional_timedelta(message: Message, field: str) -> timedelta | None:
    """Reads a duration that may be missing."""
    value: Duration = getattr(message, field)
    return value.ToTimedelta() if message.HasField(field) else None


def optional_time(message: Message, name: str, field: str) -> datetime | None:
    """Reads a time that may be missing; `field` is its path in the request.

    Raises:
        ServiceError: INVALID_ARGUMENT: it is outside of what can be stored.
    """
    return required_time(message, name, field) if message.HasField(name) else None


def required_time(message: Message, name: str, field: str) -> datetime:
    """Reads a time; `field` is its path in the request.

    Raises:
        ServiceError: INVALID_ARGUMENT: it is outside of what can be stored.
    """
    stamp: Timestamp = getattr(message, name)
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid_request(field, "must lie between the years 1 and 9999") from None


def as_json(message: Message, field: str) -> Any:
    """Reads a value as JSON; `field` is its path in the request.

    Raises:
        ServiceError: INVALID_ARGUMENT: JSON has no such number.
    """
    try:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (json_format.SerializeToJsonError, ValueError):
        # JSON has no infinity; at the outermost place the library tells of it in another way.
        raise invalid_request(field, "must have finite numbers") from None


def sdk_options(message: Message) -> dict[str, Any]:
    """Reads agent options as the JSON that the session service takes."""
    found: dict[str, Any] = as_json(message, "sdk_options.output_schema")
    return found


def variable(message: task_pb2.TaskVariable, field: str) -> TaskVariable:
    """Reads a variable; `field` is its path in the request."""
    return TaskVariable(
        name=message.name,
        type=VariableType(_TYPES.Name(message.type)) if message.type else VariableType.STRING,
        description=message.description,
        required=message.required,
        default=as_json(message.default_value, f"{field}.default_value"),
    )


def retry_policy(message: task_pb2.RetryPolicy) -> RetryPolicy:
    """Reads a policy; what it leaves out is as the contract says."""
    initial, maximum = (
        optional_timedelta(message, field) for field in ("initial_interval", "maximum_interval")
    )
    return RetryPolicy(
        maximum_attempts=message.maximum_attempts or _DEFAULTS.maximum_attempts,
        initial_interval=_DEFAULTS.initial_interval if initial is None else initial,
        backoff_coefficient=message.backoff_coefficient or _DEFAULTS.backoff_coefficient,
        maximum_interval=_DEFAULTS.maximum_interval if maximum is None else maximum,
        non_retryable_reasons=frozenset(message.non_retryable_reasons),
    )


def value_of(request: pb.CreateTaskRequest | pb.UpdateTaskRequest, field: str) -> Any:
    """Reads a field of a request as its value in `TaskContent`; None or empty where it is missing."""
    match field:
        case "variables":
            return tuple(
                variable(sent, f"variables[{number}]") for number, sent in enumerate(request.variables)
            )
        case "sdk_options":
            return sdk_options(request.sdk_options)
        case "labels":
            return dict(request.labels)
        case "webhook":
            return webhook(request.webhook) if request.HasField("webhook") else None
        case "run_timeout":
            return optional_timedelta(request, field)
        case "retry_policy":
            return retry_policy(request.retry_policy)
        case _:
            return getattr(request, field)


def webhook(message: webhook_pb2.Webhook) -> Webhook:
    """Reads a webhook."""
    return Webhook(message.url, tuple(RunState(_STATES.Name(state)) for state in sorted(message.states)))


def task(value: Task) -> task_pb2.Task:
    """Maps a task."""
    content: TaskContent = value.content
    message = task_pb2.Task(
        id=str(value.id),
        name=content.name,
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        prompt_template=content.prompt_template,
        labels=dict(content.labels),
        priority=content.priority,
        max_concurrent_runs=content.max_concurrent_runs,
        run_budget_usd=content.run_budget_usd,
        create_time=time(value.create_time),
        update_time=time(value.update_time),
        etag=value.etag,
    )
    json_format.ParseDict({"permission_mode": "DEFAULT", **content.sdk_options}, message.sdk_options)
    if content.webhook is not None:
        message.webhook.url = content.webhook.url
        message.webhook.states.extend(_STATES.Value(state.value) for state in content.webhook.states)
    message.run_timeout.FromTimedelta(content.run_timeout)
    for kept in content.variables:
        shown = message.variables.add(
            name=kept.name,
            type=_TYPES.Value(kept.type.value),
            description=kept.description,
            required=kept.required,
        )
        if kept.default is not None:
            json_format.ParseDict(kept.default, shown.default_value)
    policy = content.retry_policy
    message.retry_policy.maximum_attempts = policy.maximum_attempts
    message.retry_policy.initial_interval.FromTimedelta(policy.initial_interval)
    message.retry_policy.backoff_coefficient = policy.backoff_coefficient
    message.retry_policy.maximum_interval.FromTimedelta(policy.maximum_interval)
    message.retry_policy.non_retryable_reasons.extend(sorted(policy.non_retryable_reasons))
    return message
