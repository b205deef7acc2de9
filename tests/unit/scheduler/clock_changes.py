"""The clock changes of the tz database, read by other means than the service's, and a plain statement of the rule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cache
from importlib import resources
from zoneinfo import _zoneinfo  # type: ignore[attr-defined]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Change:
    at: datetime
    before: timedelta
    after: timedelta
    zone: str

    @property
    def shape(self) -> tuple[timedelta, timedelta, time]:
        """What changes of other years and zones have in common with it: offsets, and the time on the wall."""
        return self.before, self.after, (self.at + self.before).time()

    def wall(self, instant: datetime) -> datetime:
        """What the clock shows near the change."""
        offset = self.before if instant < self.at else self.after
        return (instant + offset).replace(tzinfo=None)


@cache
def changes(first_year: int, last_year: int) -> dict[str, tuple[Change, ...]]:
    """The changes of offset of every zone, from the tables and the rules in the database's files themselves."""
    names = resources.files("tzdata").joinpath("zones").read_text("ascii").split()
    return {name: tuple(_changes(name, first_year, last_year)) for name in names if name != "Factory"}


def _changes(name: str, first_year: int, last_year: int) -> Iterator[Change]:
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        zone = _zoneinfo.ZoneInfo.from_file(file, key=name)
    offsets = [info.utcoff for info in (zone._tti_before, *zone._ttinfos) if info is not None]
    found = list(zip(zone._trans_utc, offsets, offsets[1:], strict=False))
    rule = zone._tz_after
    if isinstance(rule, _zoneinfo._TZStr):
        latest = zone._trans_utc[-1] if zone._trans_utc else 0
        standard, summer = rule.std.utcoff, rule.dst.utcoff
        for year in range(first_year, last_year + 1):
            begin, end = rule.transitions(year)
            pair = [
                (begin - standard.total_seconds(), standard, summer),
                (end - summer.total_seconds(), summer, standard),
            ]
            found += [change for change in sorted(pair) if change[0] > latest]
    for seconds, before, after in found:
        at = EPOCH + timedelta(seconds=seconds)
        if before != after and first_year <= at.year <= last_year:
            yield Change(at, before, after, name)


def fires_by_the_rule(
    change: Change, matches: Callable[[datetime], bool], elapsed: bool, start: datetime, minutes: int
) -> list[datetime]:
    """Walks over the minutes after `start`, looking at the clock, as someone would who fires by hand.

    Args:
        change: the only change of the clock near.
        matches: whether a wall clock time, in whole minutes, matches.
        elapsed: whether to go by what is shown alone.
        start: before the first minute.
        minutes: how many.
    """
    fires = []
    latest = change.wall(start)
    for number in range(1, minutes + 1):
        instant = start + number * MINUTE
        shown = change.wall(instant)
        if elapsed:
            due = matches(shown)
        else:
            # Whatever the clock has come to show, or has passed over, for the first time.
            fresh = (latest + step * MINUTE for step in range(1, (shown - latest) // MINUTE + 1))
            due = any(matches(wall) for wall in fresh)
        if due:
            fires.append(instant)
        latest = max(latest, shown)
    return fires
