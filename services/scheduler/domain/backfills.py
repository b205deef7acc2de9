"""Backfills: the fires of a schedule in a span of the past, made belatedly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.scheduler.domain.overlap import OverlapPolicy

MAX_FIRES: Final = 10_000
"""How many fires a backfill may make."""
MAX_AT_WORK: Final = 10
"""How many backfills of one owner make fires at once."""


class BackfillState(StrEnum):
    """Where a backfill stands."""

    RUNNING = "RUNNING"
    """Not all of its fires are made yet."""
    COMPLETED = "COMPLETED"
    """All of them are."""
    CANCELLED = "CANCELLED"
    """No further one is made."""


@dataclass(frozen=True, slots=True)
class Backfill:
    """A span whose fires are made belatedly.

    Attributes:
        start_time: The earliest nominal time, itself included.
        end_time: The latest nominal time, itself included.
        overlap_policy: What its fires do while a run of the schedule is open.
        handled_until: The nominal time up to which its fires are made.
        fire_count: How many were made.
        complete_time: When the last one was made, or it was cancelled.
    """

    id: UUID
    organization_id: UUID
    user_id: UUID
    schedule_id: UUID
    start_time: datetime
    end_time: datetime
    overlap_policy: OverlapPolicy
    state: BackfillState
    handled_until: datetime
    fire_count: int
    create_time: datetime
    complete_time: datetime | None
