"""Schedules: requests as the domain's values, and entities as messages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.scheduler.api.mapping import as_json, optional_time, optional_timedelta, time
from services.scheduler.domain.errors import invalid_request
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import DEFAULT_TIME_ZONE, Schedule, ShownFire, Timing

_POLICIES = schedule_pb2.Schedule.OverlapPolicy
_STATES = schedule_pb2.Schedule.State
_TIMES = ("start_time", "end_time", "anchor")


def timing(message: schedule_pb2.ScheduleSpec) -> Timing:
    """Reads when a schedule fires."""
    return Timing(
        cron_expression=message.cron_expression if message.HasField("cron_expression") else None,
        interval=optional_timedelta(message, "interval"),
        time_zone=message.time_zone or DEFAULT_TIME_ZONE,
        jitter=optional_timedelta(message, "jitter") or timedelta(),
        **{name: optional_time(message, name, f"spec.{name}") for name in _TIMES},
    )


def value_of(request: pb.CreateScheduleRequest | pb.UpdateScheduleRequest, field: str) -> Any:
    """Reads a field of a request as its value in `ScheduleContent`; None where it is missing and has no default."""
    match field:
        case "spec":
            return timing(request.spec) if request.HasField("spec") else None
        case "variables":
            return as_json(request.variables, "variables")
        case "overlap_policy":
            name = _POLICIES.Name(request.overlap_policy) if request.overlap_policy else "SKIP"
            return OverlapPolicy(name)
        case "catch_up_window":
            return optional_timedelta(request, field)
        case "remaining_runs":
            return request.remaining_runs if request.HasField("remaining_runs") else None
        case _:
            return getattr(request, field)


def schedule(value: Schedule) -> schedule_pb2.Schedule:
    """Maps a schedule."""
    content = value.content
    message = schedule_pb2.Schedule(
        id=str(value.id),
        task_id=str(value.task_id),
        name=content.name,
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        spec=spec(content.timing),
        overlap_policy=_POLICIES.Value(content.overlap_policy.value),
        pause_on_failure=content.pause_on_failure,
        remaining_runs=content.remaining_runs,
        state=_STATES.Value(value.standing.state.value),
        note=value.note,
        missed_fires=value.missed_fires,
        create_time=time(value.create_time),
        update_time=time(value.update_time),
        etag=value.etag,
    )
    message.variables.update(content.variables)
    message.catch_up_window.FromTimedelta(content.catch_up_window)
    _set_time(message, "next_fire_time", value.standing.next_fire_time)
    _set_time(message, "last_fire_time", value.last_fire_time)
    return message


def spec(value: Timing) -> schedule_pb2.ScheduleSpec:
    """Maps when a schedule fires."""
    message = schedule_pb2.ScheduleSpec(time_zone=value.time_zone)
    if value.cron_expression is not None:
        message.cron_expression = value.cron_expression
    if value.interval is not None:
        message.interval.FromTimedelta(value.interval)
    if value.jitter:
        message.jitter.FromTimedelta(value.jitter)
    for name in _TIMES:
        _set_time(message, name, getattr(value, name))
    return message


def fire(value: ShownFire) -> schedule_pb2.ScheduleFire:
    """Maps a fire that is to come."""
    return schedule_pb2.ScheduleFire(
        fire_time=time(value.fire_time), local_time=value.local_time, due_time=time(value.due_time)
    )


def previewed(request: pb.PreviewScheduleRequest) -> UUID | Timing:
    """Reads of what a preview is wanted.

    Raises:
        ServiceError: INVALID_ARGUMENT: of two things, or of none.
    """
    if bool(request.schedule_id) == request.HasField("spec"):
        raise invalid_request("spec", "must be given, or schedule_id; not both")
    return UUID(request.schedule_id) if request.schedule_id else timing(request.spec)


def _set_time(message: Message, field: str, value: datetime | None) -> None:
    if value is not None:
        getattr(message, field).FromDatetime(value)
