"""Backfills: requests as the domain's values, and entities as messages."""

from __future__ import annotations

from uuid import UUID

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.scheduler.api.mapping import required_time, time
from services.scheduler.domain.backfills import Backfill
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.usecases.backfills import AskBackfill

_POLICIES = schedule_pb2.Schedule.OverlapPolicy
_STATES = schedule_pb2.ScheduleBackfill.State


def asked(request: pb.BackfillScheduleRequest) -> AskBackfill:
    """Reads what is to be filled."""
    policy = request.overlap_policy
    return AskBackfill(
        schedule_id=UUID(request.schedule_id),
        start_time=required_time(request, "start_time", "start_time"),
        end_time=required_time(request, "end_time", "end_time"),
        overlap_policy=OverlapPolicy(_POLICIES.Name(policy)) if policy else None,
    )


def backfill(value: Backfill) -> schedule_pb2.ScheduleBackfill:
    """Maps a backfill."""
    return schedule_pb2.ScheduleBackfill(
        id=str(value.id),
        schedule_id=str(value.schedule_id),
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        start_time=time(value.start_time),
        end_time=time(value.end_time),
        overlap_policy=_POLICIES.Value(value.overlap_policy.value),
        state=_STATES.Value(value.state.value),
        fire_count=value.fire_count,
        create_time=time(value.create_time),
        complete_time=time(value.complete_time) if value.complete_time else None,
    )
