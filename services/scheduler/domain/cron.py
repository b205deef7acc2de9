"""Cron expressions: which wall clock times they name.

Five fields are minute, hour, day of month, month, day of week. With six, seconds stand first, as in Spring, Quartz,
node-cron and Go's cron, where six-field expressions are usually written for; croniter's own place for them is the end.
Days of the week are 0 to 7 with Sunday at both ends, as in crontab(5), also with six fields.

A day matches if its day of month or its day of week does, where both are restricted, as in crontab(5).

Reading is ours, because croniter takes for good what nobody means (`30-30` is the whole hour to it, `R` a random
value, `7` no Sunday once there are six fields). It is given the days alone, in numbers, and naive midnights: it finds
the days, and the time of day is looked up in sorted lists. No zone is known here; see `local_time`.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final

from croniter.croniter import (  # type: ignore[import-untyped]
    EXPRESSIONS,
    CroniterBadDateError,
    croniter,
)

MAX_CHARACTERS: Final = 256
MAX_GAP_YEARS: Final = 50
"""How far the next match is looked for. The rarest, a fifth given weekday in February, comes after 40 years at most."""

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_EVERY = ("*", "?", "*/1")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM = re.compile(
    r"(?P<low>\*|[a-z]+|[0-9]{1,4})(?:-(?P<high>[a-z]+|[0-9]{1,4}))?(?:/(?P<step>[0-9]{1,4}))?"
)
_NTH = re.compile(r"(?P<day>[a-z]+|[0-7])#(?P<nth>[1-5])")
_LAST = re.compile(r"l(?P<before>[a-z]{3}|[0-7])|(?P<after>[a-z]{3}|[0-7])l")


class CronError(ValueError):
    """An expression that is none, or that never fires.

    Attributes:
        reason: `SYNTAX`, `TOO_LONG` or `NEVER_FIRES`.
    """

    def __init__(self, reason: str, description: str) -> None:
        super().__init__(description)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    first: int
    last: int
    names: dict[str, int]

    @property
    def size(self) -> int:
        return self.last - self.first + 1


_SECOND = _Field("second", 0, 59, {})
_MINUTE = _Field("minute", 0, 59, {})
_HOUR = _Field("hour", 0, 23, {})
_DAY = _Field("day of month", 1, 31, {})
_MONTH = _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)})
_WEEKDAY = _Field("day of week", 0, 6, {name: number for number, name in enumerate(_WEEKDAYS)})


@dataclass(frozen=True, slots=True)
class CronExpression:
    """An expression that has been read.

    Attributes:
        text: As it was written.
        elapsed: Whether it follows elapsed time around clock changes: its hour is a wildcard or has a step.
        hours: The hours, ascending.
        minutes: The minutes, ascending.
        seconds: The seconds, ascending; `(0,)` for five fields.
        days: Days that match, each as day of month, month and day of week for croniter; None if every day does.
    """

    text: str
    elapsed: bool
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    days: tuple[str, ...] | None

    @classmethod
    def read(cls, text: str) -> CronExpression:
        """Reads an expression.

        Args:
            text: Five or six fields, or one of `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`,
                `@hourly`. In any case of letters.

        Raises:
            CronError: It is no expression, or none that ever fires.
        """
        if len(text) > MAX_CHARACTERS:
            raise CronError("TOO_LONG", f"must have at most {MAX_CHARACTERS} characters")
        return _read(text)

    def next_local(self, after: datetime) -> datetime | None:
        """The first wall clock time that matches and is later.

        Args:
            after: A wall clock time, without a zone.

        Returns:
            It, in whole seconds, without a zone; None if there is none before the calendar ends.
        """
        day = _first_day(self.days, after.date())
        if day is not None and day == after.date():
            moment = self._later_that_day(after.time())
            if moment is not None:
                return datetime.combine(day, moment)
            day = _first_day(self.days, day + timedelta(days=1)) if day < date.max else None
        if day is None:
            return None
        return datetime.combine(day, time(self.hours[0], self.minutes[0], self.seconds[0]))

    def _later_that_day(self, after: time) -> time | None:
        hour, minute, second = after.hour, after.minute, after.second
        if hour in self.hours:
            if minute in self.minutes:
                index = bisect_right(self.seconds, second)
                if index < len(self.seconds):
                    return time(hour, minute, self.seconds[index])
            index = bisect_right(self.minutes, minute)
            if index < len(self.minutes):
                return time(hour, self.minutes[index], self.seconds[0])
        index = bisect_right(self.hours, hour)
        if index < len(self.hours):
            return time(self.hours[index], self.minutes[0], self.seconds[0])
        return None


@lru_cache(maxsize=4096)
def _read(text: str) -> CronExpression:
    words = _ALIASES.get(text.strip().lower(), text.lower()).split()
    if words and words[0].startswith("@"):
        # Go's cron has `@every 1h`.
        hint = (
            ": equal distances are not written as an expression, give an interval"
            if "every" in words[0]
            else ""
        )
        raise CronError("SYNTAX", f"must be one of {', '.join(_ALIASES)}, or fields{hint}")
    if len(words) not in (5, 6):
        raise CronError("SYNTAX", f"must have five fields, or six with seconds first, not {len(words)}")
    second = words.pop(0) if len(words) == 6 else "0"
    minute, hour, day, month, weekday = words
    seconds, minutes, hours = _values(second, _SECOND), _values(minute, _MINUTE), _values(hour, _HOUR)
    expression = CronExpression(
        text=text,
        elapsed="*" in hour or "/" in hour,
        hours=hours,
        minutes=minutes,
        seconds=seconds,
        days=_days(day, month, weekday),
    )
    if _first_day(expression.days, date(2000, 1, 1)) is None:
        raise CronError("NEVER_FIRES", "names days that never come")
    return expression


def _values(text: str, field: _Field) -> tuple[int, ...]:
    """The values that a field names, ascending."""
    return tuple(sorted({value for item in text.split(",") for value in _item(item, field)}))


def _item(text: str, field: _Field) -> list[int]:
    form = _ITEM.fullmatch(text)
    if form is None or (form["low"] == "*" and form["high"] is not None):
        raise CronError("SYNTAX", f"has {text!r} as {field.name}, which is no value, range, step or list")
    step = int(form["step"] or 1)
    if not 1 <= step <= field.size:
        raise CronError(
            "SYNTAX", f"has the step {step} in {text!r}: 1 to {field.size} are possible for a {field.name}"
        )
    if form["low"] == "*":
        return list(range(field.first, field.last + 1, step))
    low = _value(form["low"], text, field)
    if form["high"] is None:
        return [low] if form["step"] is None else list(range(low, field.last + 1, step))
    # A range may go beyond the end and on from the beginning: 22-2, fri-mon, nov-feb. Sunday is 7 at the end of one.
    high = _value(form["high"], text, field)
    if form["high"] == "7" and form["low"] != "7":
        return [value % 7 for value in range(low, 8, step)]
    if high < low:
        high += field.size
    return [(value - field.first) % field.size + field.first for value in range(low, high + 1, step)]


def _value(text: str, item: str, field: _Field) -> int:
    value = field.names.get(text)
    if value is None and text.isdigit():
        value = 0 if field is _WEEKDAY and int(text) == 7 else int(text)
    if value is None or not field.first <= value <= field.last:
        meant = next((name for name in field.names if text.startswith(name)), None)
        hint = f"; {meant} is meant, perhaps" if meant else ""
        raise CronError("SYNTAX", f"has {text!r} in {item!r}, which is no {field.name}{hint}")
    return value


def _days(day: str, month: str, weekday: str) -> tuple[str, ...] | None:
    """The days that match, as day of month, month and day of week for croniter: a day of any of them; None for all.

    They are apart because croniter loses days when they are together: of `1,31` the first of March, as it steps over
    February by a day that it lacks; and of a day of month or a day of week both, if one of them never comes.
    """
    months = _values(month, _MONTH)
    items = [] if day in _EVERY else day.split(",")
    plain = [item for item in items if item != "l"]
    days = _values(",".join(plain), _DAY) if plain else ()
    if days and len(plain) == len(items) and days[0] > max(_LONGEST_MONTH[number - 1] for number in months):
        named = ", ".join(_MONTHS[number - 1].title() for number in months)
        raise CronError("NEVER_FIRES", f"names day {days[0]}, which never comes in {named}")
    found = []
    for some_months, bound in ((months, 31),) if max(days, default=0) < 30 else _by_length(months):
        some_days = [number for number in days if number <= bound]
        if some_months and some_days:
            found.append(f"{_joined(some_days)} {_joined(some_months)} *")
    every_month = "*" if len(months) == _MONTH.size else _joined(months)
    if len(plain) < len(items):
        found.append(f"l {every_month} *")
    weekdays = _weekdays(weekday)
    if weekdays != "*" or not found:
        found.append(f"* {every_month} {weekdays}")
    return None if found == ["* * *"] else tuple(found)


def _by_length(months: tuple[int, ...]) -> tuple[tuple[list[int], int], ...]:
    return ([number for number in months if number == 2], 29), (
        [number for number in months if number != 2],
        31,
    )


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _weekdays(text: str) -> str:
    if text in _EVERY:
        return "*"
    items = text.split(",")
    counted = []
    for item in items:
        if nth := _NTH.fullmatch(item):
            counted.append(f"{_value(nth['day'], item, _WEEKDAY)}#{nth['nth']}")
        elif last := _LAST.fullmatch(item):
            counted.append(f"l{_value(last['before'] or last['after'], item, _WEEKDAY)}")
    if not counted:
        return ",".join(map(str, _values(text, _WEEKDAY)))
    if len(counted) < len(items):
        raise CronError(
            "SYNTAX", f"has {text!r} as day of week: counted days (#, L) and plain ones do not mix"
        )
    return ",".join(counted)


@lru_cache(maxsize=1024)
def _engine(days: str) -> Any:
    expression = f"0 0 {days}"
    made = croniter(expression, datetime(2000, 1, 1), max_years_between_matches=MAX_GAP_YEARS)  # noqa: DTZ001
    # croniter remembers every expression it has ever seen in a table that nothing empties.
    EXPRESSIONS.pop((expression, None, None), None)
    return made


@lru_cache(maxsize=16384)
def _first_day(days: tuple[str, ...] | None, on_or_after: date) -> date | None:
    if days is None:
        return on_or_after
    # Midnight itself is a match: it is looked for from the second before.
    start = datetime.combine(on_or_after, time()) - timedelta(seconds=1)
    found = []
    for part in days:
        try:
            # A copy, because it holds where it stands, and threads may share it.
            found.append(copy.copy(_engine(part)).get_next(datetime, start_time=start).date())
        except (CroniterBadDateError, OverflowError, ValueError):
            # There is none within MAX_GAP_YEARS, or the calendar ends.
            continue
    return min(found, default=None)
