"""When a schedule fires.

A fire is known by its nominal time, an instant; jitter moves when it is due, never what it is. With a cron expression
the nominal times follow the wall clock of a zone:

- If the hour is fixed (values, lists, ranges) each wall clock time that matches fires once. One that the clock skips
  fires at the instant of the change, which is the next valid one; all that are skipped there meet in one fire. One
  that the clock shows twice fires the first time.
- If the hour is a wildcard or has a step, elapsed time is followed: what the clock shows fires each time it is shown,
  and what it skips does not fire.

An interval knows no wall clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from services.scheduler.domain.cron import CronExpression
from services.scheduler.domain.local_time import Stretch, stretches

_TICK = timedelta(microseconds=1)
_FARTHEST_OFFSETS = timedelta(days=2)
_LATEST: Final = datetime(9998, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CronTimes:
    """The instants that a cron expression names in a zone.

    Attributes:
        expression: The expression.
        zone: Name of the time zone, checked.
    """

    expression: CronExpression
    zone: str

    def next_after(self, instant: datetime) -> datetime | None:
        """The first fire later than `instant`; both in UTC. None if there is none before the calendar ends."""
        if instant >= _LATEST:
            return None
        after = instant.astimezone(UTC).replace(tzinfo=None)
        find = _next_elapsed if self.expression.elapsed else _next_fixed
        since = after
        while True:
            leap = None
            for stretch in stretches(self.zone, since):
                fire, wall = find(self.expression, stretch, after)
                if fire is not None:
                    return fire.replace(tzinfo=UTC)
                if wall is None:
                    return None
                if wall - stretch.last > 2 * _FARTHEST_OFFSETS:
                    # Nothing matches until then: rare expressions need not walk over every change in between.
                    leap = wall - _FARTHEST_OFFSETS
                    break
            if leap is None:
                return None
            since = leap


def _next_elapsed(
    expression: CronExpression, stretch: Stretch, after: datetime
) -> tuple[datetime | None, datetime | None]:
    """The first fire in a stretch that is later than `after`, and the wall clock time that was found for it."""
    wall = expression.next_local(max(stretch.first - _TICK, after + stretch.offset))
    if wall is None or wall >= stretch.last:
        return None, wall
    return wall - stretch.offset, wall


def _next_fixed(
    expression: CronExpression, stretch: Stretch, after: datetime
) -> tuple[datetime | None, datetime | None]:
    """The first fire in a stretch that is later than `after`, and the wall clock time that was found for it."""
    first = stretch.first
    if stretch.shown < first and after < stretch.start:
        wall = expression.next_local(stretch.shown - _TICK)
        if wall is None or wall < first:
            return (None if wall is None else stretch.start), wall
    wall = expression.next_local(max(first - _TICK, stretch.shown - _TICK, after + stretch.offset))
    if wall is None or wall >= stretch.last:
        return None, wall
    return wall - stretch.offset, wall


@dataclass(frozen=True, slots=True)
class IntervalTimes:
    """Instants at equal distances.

    Attributes:
        every: The distance, positive.
        anchor: One of the instants, in UTC.
    """

    every: timedelta
    anchor: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        """The first fire later than `instant`; both in UTC. None if there is none before the calendar ends."""
        if instant >= _LATEST:
            return None
        return self.anchor + ((instant - self.anchor) // self.every + 1) * self.every

    def count(self, after: datetime, until: datetime) -> int:
        """How many fires there are in (after, until]."""
        return (until - self.anchor) // self.every - (after - self.anchor) // self.every


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """When a schedule fires, and when its fires are due.

    Attributes:
        times: What it follows.
        start_time: Earliest nominal time, itself included; None for no bound.
        end_time: Latest nominal time, itself included; None for no bound.
        jitter: A fire is due less than this after its nominal time, and before the next fire.
    """

    times: CronTimes | IntervalTimes
    start_time: datetime | None = None
    end_time: datetime | None = None
    jitter: timedelta = timedelta()

    def next_after(self, instant: datetime) -> datetime | None:
        """The first nominal time later than an instant.

        Args:
            instant: Aware, in any zone.

        Returns:
            It, in UTC; None if the schedule does not fire any more.
        """
        if self.start_time is not None and instant < self.start_time:
            instant = self.start_time - _TICK
        found = self.times.next_after(instant)
        if found is None or (self.end_time is not None and found > self.end_time):
            return None
        return found

    def following(self, instant: datetime) -> Iterator[datetime]:
        """All nominal times later than an instant, ascending; possibly without end."""
        found = self.next_after(instant)
        while found is not None:
            yield found
            found = self.next_after(found)

    def between(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The first nominal times in (after, until], at most `limit`."""
        found: list[datetime] = []
        for fire in self.following(after):
            if fire > until or len(found) >= limit:
                break
            found.append(fire)
        return found

    def preview(self, after: datetime, count: int, remaining: RunLimit | None = None) -> list[datetime]:
        """The next nominal times later than an instant: exactly what fires if nothing changes.

        Args:
            after: The instant, aware.
            count: How many at most.
            remaining: What is left of the schedule's limit of runs; None for no limit.
        """
        return list(islice(self.following(after), count if remaining is None else remaining.cut(count)))

    def due_time(self, schedule_id: str, fire: datetime) -> datetime:
        """When a fire is due: its nominal time and a share of the jitter.

        The share is drawn from the schedule's id and the nominal time, so that every replica and every restart comes to
        the same. It never reaches the next fire, so that fires are due in their order.

        Args:
            schedule_id: The schedule's id as text.
            fire: A nominal time of the schedule.
        """
        if not self.jitter:
            return fire
        following = self.next_after(fire)
        span = self.jitter if following is None else min(self.jitter, following - fire)
        digest = hashlib.sha256(f"{schedule_id}/{fire.astimezone(UTC).isoformat()}".encode()).digest()
        return fire + span // _TICK * int.from_bytes(digest[:8]) // 2**64 * _TICK


@dataclass(frozen=True, slots=True)
class RunLimit:
    """How many runs a schedule may still make.

    Attributes:
        remaining: The number, 0 or more; None for no limit.
    """

    remaining: int | None = None

    def cut(self, wanted: int) -> int:
        """How many of `wanted` runs may be made."""
        return wanted if self.remaining is None else min(wanted, self.remaining)

    def after(self, made: int) -> RunLimit:
        """What is left when `made` runs were made, all of them allowed."""
        return self if self.remaining is None else RunLimit(self.remaining - made)

    @property
    def exhausted(self) -> bool:
        """Whether the schedule is over."""
        return self.remaining == 0
