"""Time zones as stretches of time with one offset: what lies between two clock changes.

The zones are those of the `tzdata` package, whatever the machine has: replicas then agree, and a name is looked up in
the package's list, never joined to a path of the caller's making.

Instants inside this package are naive datetimes in UTC, wall clock times are naive datetimes as a clock in the zone
shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo

_SAMPLE = timedelta(days=2)
_SECOND = timedelta(seconds=1)
_LONGEST_OVERLAP = timedelta(days=2)
_LAST_YEAR: Final = 9998
# No name is longer: what is, is not compared with them.
_MAX_NAME: Final = 64


class ZoneError(ValueError):
    """There is no such time zone."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time in which a zone keeps one offset. A year's end parts one as well, without a change.

    Attributes:
        start: First instant, in UTC.
        end: First instant after it, in UTC.
        offset: Local time minus UTC.
        shown: The first wall clock time that no clock has shown before `start`, or has skipped. Before the stretch's
            own first time if the clock was put forward, after it if it was put back.
    """

    start: datetime
    end: datetime
    offset: timedelta
    shown: datetime

    @property
    def first(self) -> datetime:
        """The first wall clock time."""
        return self.start + self.offset

    @property
    def last(self) -> datetime:
        """The wall clock time at which the stretch has ended."""
        return self.end + self.offset


def check_zone(name: str) -> None:
    """Checks the name of a time zone.

    Args:
        name: As the IANA database spells it, such as `Europe/Berlin`.

    Raises:
        ZoneError: There is no such zone.
    """
    names = _names()
    if name not in names.values():
        likely = get_close_matches(name.casefold(), names, n=1, cutoff=0.8) if len(name) <= _MAX_NAME else []
        hint = f"; {names[likely[0]]} is meant, perhaps" if likely else ""
        raise ZoneError(f"must be a time zone of the IANA database, such as Europe/Berlin{hint}")


def stretches(zone: str, since: datetime) -> Iterator[Stretch]:
    """The stretches of a zone, from the one that holds an instant onwards, to the end of the calendar.

    Args:
        zone: Name of the zone, checked before.
        since: The instant, naive in UTC.
    """
    for year in range(since.year, _LAST_YEAR + 1):
        for stretch in _stretches_in(zone, year):
            if stretch.end > since:
                yield stretch


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    listed = resources.files("tzdata").joinpath("zones").read_text("ascii").split()
    return {name.casefold(): name for name in listed if name != "Factory"}


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    check_zone(name)
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


@lru_cache(maxsize=4096)
def _stretches_in(zone: str, year: int) -> tuple[Stretch, ...]:
    start, end = _new_year(year), _new_year(year + 1)
    before = start - _LONGEST_OVERLAP if year > 1 else start
    changes = _changes(_zone(zone), before, end)
    offset = _offset(_zone(zone), start)
    # The clock may change at the very start, and an earlier change may have shown more than the start does.
    earlier = next((old for at, old, _ in changes if at == start), offset)
    shown = max([start + earlier, *(at + old for at, old, _ in changes if at < start)])
    found = []
    for at, old, new in changes:
        if at <= start:
            continue
        found.append(Stretch(start, at, old, shown))
        start, offset, shown = at, new, max(shown, at + old)
    found.append(Stretch(start, end, offset, shown))
    return tuple(found)


def _new_year(year: int) -> datetime:
    return datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    local = instant.replace(tzinfo=UTC).astimezone(zone)
    return local.replace(tzinfo=None) - instant


def _changes(zone: ZoneInfo, start: datetime, end: datetime) -> list[tuple[datetime, timedelta, timedelta]]:
    """Instants in (start, end) from which on the offset is another one, with the old and the new offset.

    `zoneinfo` does not list them. They are found by sampling, which would miss two within a sample that undo each
    other; a test compares with the whole database.
    """
    found = []
    low, old = start, _offset(zone, start)
    while low < end:
        high = min(low + _SAMPLE, end)
        new = _offset(zone, high)
        if new != old:
            early, late = low, high
            while late - early > _SECOND:
                middle = (early + (late - early) / 2).replace(microsecond=0)
                early, late = (middle, late) if _offset(zone, middle) == old else (early, middle)
            found.append((late, old, _offset(zone, late)))
            # Another change may lie in the rest of the sample.
            high, new = late, _offset(zone, late)
        low, old = high, new
    return [change for change in found if change[0] < end]
