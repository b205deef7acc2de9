"""Which fires of a schedule are to be made now, and which are too late.

A fire that was due within the catch-up window before now is made, however late; an older one is missed. With a window
of an hour, a schedule that was down for a day makes the fires of the last hour, all that a preview of that span lists.
The overlap policy then decides what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.scheduler.domain.fires import IntervalTimes, RunLimit, ScheduleSpec

_TICK = timedelta(microseconds=1)
MIN_WINDOW: Final = timedelta(seconds=10)
"""Shorter ones would miss fires for the time that the service itself takes."""
MAX_WINDOW: Final = timedelta(days=366)
COUNTED_AT_MOST: Final = 10_000
"""Missed fires of a cron expression are counted up to this number."""


@dataclass(frozen=True, slots=True)
class Fire:
    """A fire that is to be made.

    Attributes:
        nominal_time: What it is known by.
        due_time: When it was due.
    """

    nominal_time: datetime
    due_time: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at a schedule comes to.

    Attributes:
        fires: The fires to make, in their order.
        missed: How many were too late; of a cron expression's no more than `COUNTED_AT_MOST` are counted.
        handled_until: Fires up to this nominal time need not be looked at again.
        next_fire: The next fire; it may be due already, when more are due than one step takes. None if the schedule is
            over.
    """

    fires: tuple[Fire, ...]
    missed: int
    handled_until: datetime
    next_fire: Fire | None


def take_step(
    spec: ScheduleSpec,
    schedule_id: str,
    *,
    handled_until: datetime,
    now: datetime,
    window: timedelta,
    limit: int,
    remaining: RunLimit | None = None,
) -> Step:
    """Looks which fires are due.

    The cost is bounded, however long nobody looked: at most `limit` fires are made, and missed ones are passed over.

    Args:
        spec: when the schedule fires.
        schedule_id: its id as text.
        handled_until: the nominal time up to which its fires have been handled; when it was created, at first.
        now: the instant, by the clock that all replicas go by.
        window: how far back fires are made.
        limit: how many fires one step makes, 1 or more.
        remaining: how many runs the schedule may still make.
    """
    remaining = RunLimit() if remaining is None else remaining
    candidate, missed = spec.next_after(handled_until), 0
    if candidate is not None and candidate < now - window:
        candidate = _first_within(spec, schedule_id, handled_until, now - window)
        if not remaining.exhausted:
            missed = _count(spec, handled_until, now if candidate is None else min(candidate, now))
    fires: list[Fire] = []
    while candidate is not None and len(fires) < remaining.cut(limit):
        due = spec.due_time(schedule_id, candidate)
        if due > now:
            break
        fires.append(Fire(candidate, due))
        candidate = spec.next_after(candidate)
    if candidate is None or remaining.after(len(fires)).exhausted:
        return Step(tuple(fires), missed, max(now, handled_until), None)
    # Never beyond now: a change of the schedule may bring earlier fires.
    reached = fires[-1].nominal_time if fires else min(candidate - _TICK, now)
    next_fire = Fire(candidate, spec.due_time(schedule_id, candidate))
    return Step(tuple(fires), missed, max(reached, handled_until), next_fire)


def _first_within(
    spec: ScheduleSpec, schedule_id: str, after: datetime, earliest: datetime
) -> datetime | None:
    """The first fire later than `after` that is due at `earliest` or later."""
    start = max(after, earliest - _TICK)
    if spec.jitter and earliest > after:
        # Of the fires whose nominal time is earlier, jitter can bring the last one alone to `earliest`.
        last = _last_before(spec, after, start)
        if last is not None and spec.due_time(schedule_id, last) >= earliest:
            return last
    return spec.next_after(start)


def _last_before(spec: ScheduleSpec, after: datetime, until: datetime) -> datetime | None:
    """The last fire in (after, until], if it is not farther from `until` than jitter reaches."""
    reach = timedelta(seconds=1)
    while True:
        reach = min(reach, spec.jitter)
        found = None
        for fire in spec.following(max(after, until - reach)):
            if fire > until:
                break
            found = fire
        if found is not None or reach >= spec.jitter:
            return found
        reach *= 2


def _count(spec: ScheduleSpec, after: datetime, before: datetime) -> int:
    """How many fires there are in (after, before), as far as they are counted."""
    until = before - _TICK
    if isinstance(spec.times, IntervalTimes):
        # The schedule's own bounds, which the interval does not know.
        if spec.start_time is not None:
            after = max(after, spec.start_time - _TICK)
        if spec.end_time is not None:
            until = min(until, spec.end_time)
        return max(0, spec.times.count(after, until))
    return len(spec.between(after, until, COUNTED_AT_MOST))
