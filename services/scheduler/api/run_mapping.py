"""Runs: entities as messages."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import json_format

from aiagent.events.v1 import content_pb2
from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.scheduler.api.mapping import time
from services.scheduler.domain.runs import Failure, Run, RunAttempt, Usage
from services.scheduler.usecases.watching import Seen

_STATES = run_pb2.TaskRun.State
_SKIP_REASONS = run_pb2.TaskRun.SkipReason


def run(value: Run, attempts: Sequence[RunAttempt] = ()) -> run_pb2.TaskRun:
    """Maps a run."""
    message = run_pb2.TaskRun(
        id=str(value.id),
        task_id=str(value.task_id),
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        schedule_id=str(value.schedule_id or ""),
        fire_time=time(value.fire_time) if value.fire_time else None,
        state=_STATES.Value(value.state.value),
        attempt=value.attempt,
        attempts=map(_attempt, attempts),
        priority=value.content.priority,
        result=value.result,
        structured_output_json=value.structured_output_json,
        failure=_failure(value.failure),
        usage=_usage(value.usage),
        cost_usd=value.cost_usd,
        session_id=str(value.session_id or ""),
        cancel_requested=value.cancel_requested,
        create_time=time(value.create_time),
        start_time=time(value.start_time) if value.start_time else None,
        end_time=time(value.end_time) if value.end_time else None,
        backfill_id=str(value.backfill_id or ""),
        due_time=time(value.due_time),
        skip_reason=_SKIP_REASONS.Value(
            value.skip_reason.value if value.skip_reason else "SKIP_REASON_UNSPECIFIED"
        ),
        retry_of=str(value.retry_of or ""),
    )
    if value.content.variables:
        json_format.ParseDict(dict(value.content.variables), message.variables)
    return message


def watched(seen: Seen) -> pb.WatchTaskRunResponse:
    """Maps what a watcher is told; without a run it is a checkpoint."""
    shown = seen.shown
    return pb.WatchTaskRunResponse(
        task_run=run(shown.run, shown.attempts) if shown is not None else None, cursor=seen.cursor
    )


def _attempt(value: RunAttempt) -> run_pb2.TaskRunAttempt:
    return run_pb2.TaskRunAttempt(
        attempt=value.attempt,
        state=_STATES.Value(value.state.value),
        session_id=str(value.session_id or ""),
        turn_id=str(value.turn_id or ""),
        failure=_failure(value.failure),
        usage=_usage(value.usage),
        cost_usd=value.cost_usd,
        start_time=time(value.start_time),
        end_time=time(value.end_time) if value.end_time else None,
    )


def _failure(value: Failure | None) -> content_pb2.Failure | None:
    return content_pb2.Failure(reason=value.reason, message=value.message) if value is not None else None


def _usage(value: Usage) -> content_pb2.Usage:
    return content_pb2.Usage(
        input_tokens=value.input_tokens,
        output_tokens=value.output_tokens,
        cache_read_tokens=value.cache_read_tokens,
        cache_write_tokens=value.cache_write_tokens,
    )
