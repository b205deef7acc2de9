"""What is kept of a schedule, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from services.scheduler.domain.errors import invalid_request
from services.scheduler.domain.fires import RunLimit, ScheduleSpec
from services.scheduler.domain.local_time import ZoneError, check_zone, stretches
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.specs import read_spec

DEFAULT_CATCH_UP_WINDOW: Final = timedelta(days=1)
DEFAULT_TIME_ZONE: Final = "UTC"


class ScheduleState(StrEnum):
    """Where a schedule stands."""

    ACTIVE = "ACTIVE"
    """It has a next fire."""
    PAUSED = "PAUSED"
    """It does not fire until it is resumed."""
    ENDED = "ENDED"
    """No fire is left."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires, as its owner says it: one of `cron_expression` and `interval`; see `specs.read_spec`."""

    cron_expression: str | None = None
    interval: timedelta | None = None
    time_zone: str = DEFAULT_TIME_ZONE
    start_time: datetime | None = None
    end_time: datetime | None = None
    jitter: timedelta = timedelta()
    anchor: datetime | None = None

    def spec(self, *, now: datetime | None = None) -> ScheduleSpec:
        """Reads it.

        Args:
            now: if given, it must fire later than this.

        Raises:
            ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation of each field of `spec` at fault.
        """
        read = read_spec(
            cron_expression=self.cron_expression,
            interval=self.interval,
            time_zone=self.time_zone,
            anchor=self.anchor,
            start_time=self.start_time,
            end_time=self.end_time,
            jitter=self.jitter,
            now=now,
            path="spec",
        )
        try:
            # An interval does not need it, and its fires are shown in it.
            check_zone(self.time_zone)
        except ZoneError as error:
            raise invalid_request("spec.time_zone", str(error)) from None
        return read

    def local_time(self, instant: datetime) -> str:
        """What a clock in the zone shows at an instant, in ISO 8601 with the offset from UTC."""
        known = instant.astimezone(UTC).replace(tzinfo=None)
        offset = next(stretches(self.time_zone, known)).offset
        return instant.astimezone(timezone(offset)).isoformat()


@dataclass(frozen=True, slots=True)
class ScheduleContent:
    """What its owner says of a schedule.

    Attributes:
        name: What it is called; may be empty.
        timing: When it fires.
        variables: Values of its task's variables by name, as JSON.
        overlap_policy: What a fire does while a run of an earlier one is open.
        catch_up_window: How late a fire may be made.
        pause_on_failure: Whether a run that fails for good pauses it.
        remaining_runs: How many runs it may still make; None for no limit.
    """

    name: str
    timing: Timing
    variables: Mapping[str, Any]
    overlap_policy: OverlapPolicy
    catch_up_window: timedelta
    pause_on_failure: bool
    remaining_runs: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a schedule stands.

    Attributes:
        state: The word for it.
        handled_until: The nominal time up to which its fires have been handled.
        next_fire_time: The nominal time of its next fire; None unless ACTIVE.
        next_due_time: When that one is due, jitter included; None unless ACTIVE.
    """

    state: ScheduleState
    handled_until: datetime
    next_fire_time: datetime | None = None
    next_due_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task is to run by itself."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    task_id: UUID
    content: ScheduleContent
    standing: Standing
    note: str
    missed_fires: int
    last_fire_time: datetime | None
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """The version as clients see it (AIP-154)."""
        return f'"{self.version}"'


@dataclass(frozen=True, slots=True)
class ShownFire:
    """A fire that is to come: its nominal time, the same in the schedule's zone, and when it is due."""

    fire_time: datetime
    local_time: str
    due_time: datetime


def standing_of(schedule_id: UUID, content: ScheduleContent, handled_until: datetime) -> Standing:
    """Where a schedule stands that is not paused.

    Args:
        schedule_id: its id.
        content: what its owner says.
        handled_until: the nominal time up to which its fires have been handled.
    """
    spec = content.timing.spec()
    fire = None if RunLimit(content.remaining_runs).exhausted else spec.next_after(handled_until)
    if fire is None:
        return Standing(ScheduleState.ENDED, handled_until)
    return Standing(ScheduleState.ACTIVE, handled_until, fire, spec.due_time(str(schedule_id), fire))


def following(timing: Timing, after: datetime, *, schedule_id: UUID | None = None) -> Iterator[ShownFire]:
    """The fires later than an instant, one after another; possibly without end.

    Args:
        timing: when the schedule fires.
        after: the instant.
        schedule_id: of a schedule that is kept, whose jitter is known; else fires are shown without.
    """
    spec = timing.spec()
    for fire in spec.following(after):
        due = spec.due_time(str(schedule_id), fire) if schedule_id is not None else fire
        yield ShownFire(fire, timing.local_time(fire), due)
