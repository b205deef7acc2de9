# ruff: noqa: DTZ001 - wall clock times have no zone
"""What is an expression, and which wall clock times it names."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from itertools import pairwise

import pytest
from croniter import croniter as original
from croniter.croniter import EXPRESSIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain.cron import MAX_CHARACTERS, CronError, CronExpression

pytestmark = pytest.mark.unit


def following(text: str, after: datetime, count: int) -> list[datetime]:
    expression, found = CronExpression.read(text), []
    for _ in range(count):
        moment = expression.next_local(after)
        assert moment is not None
        found.append(moment)
        after = moment
    return found


def days_in_month(day: date) -> int:
    return ((day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)).day


def weekday(day: date) -> int:
    return day.isoweekday() % 7


@pytest.mark.parametrize(
    ("days", "matches"),
    [
        ("1,31 * *", lambda d: d.day in (1, 31)),
        ("1,30 2,3 *", lambda d: d.month in (2, 3) and d.day in (1, 30)),
        ("29 2 *", lambda d: (d.month, d.day) == (2, 29)),
        ("29-31 * *", lambda d: d.day >= 29),
        ("L * *", lambda d: d.day == days_in_month(d)),
        ("L,15,31 2,4 *", lambda d: d.month in (2, 4) and d.day in (15, days_in_month(d))),
        ("28-2 * *", lambda d: d.day >= 28 or d.day <= 2),
        ("*/7 */5 *", lambda d: d.day % 7 == 1 and d.month in (1, 6, 11)),
        ("* nov-FEB Fri-mon", lambda d: d.month in (11, 12, 1, 2) and weekday(d) in (5, 6, 0, 1)),
        ("* * 5-7", lambda d: weekday(d) in (5, 6, 0)),
        ("* * 7-1", lambda d: weekday(d) in (0, 1)),
        ("? * 7", lambda d: weekday(d) == 0),
        ("* * sun#5", lambda d: weekday(d) == 0 and d.day > 28),
        ("* * mon#1,3#2", lambda d: (weekday(d) == 1 and d.day <= 7) or (weekday(d) == 3 and 8 <= d.day <= 14)),
        ("* * 5L", lambda d: weekday(d) == 5 and d.day > days_in_month(d) - 7),
        ("* * Lfri,l7", lambda d: weekday(d) in (5, 0) and d.day > days_in_month(d) - 7),
        # Of a day of month and a day of week either will do, as in crontab(5), even if one of them is rare.
        ("13 * fri", lambda d: d.day == 13 or weekday(d) == 5),
        ("31 2-4 mon", lambda d: d.month in (2, 3, 4) and (d.day == 31 or weekday(d) == 1)),
        ("29 2 sat#5", lambda d: d.month == 2 and (d.day == 29 or (weekday(d) == 6 and d.day == 29))),
        ("*/1 * mon", lambda d: weekday(d) == 1),
    ],
)  # fmt: skip
def test_days(days: str, matches: Callable[[date], bool]) -> None:
    every = (date(2023, 1, 1) + timedelta(days=number) for number in range(10 * 365))
    wanted = [day for day in every if matches(day)][:400]
    found = following(f"0 0 {days}", datetime(2022, 12, 31, 12), len(wanted))
    assert [moment.date() for moment in found] == wanted


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("30 2 * * *", ["02:30:00"]),
        ("*/20 9 * * *", ["09:00:00", "09:20:00", "09:40:00"]),
        ("5/25 23-0 * * *", ["00:05:00", "00:30:00", "00:55:00", "23:05:00", "23:30:00", "23:55:00"]),
        ("30-30 4 * * *", ["04:30:00"]),
        ("@daily", ["00:00:00"]),
        ("  @Midnight ", ["00:00:00"]),
        # Six fields: seconds stand first.
        ("15 30 2 * * *", ["02:30:15"]),
        ("*/30 0 12 * * 0-7", ["12:00:00", "12:00:30"]),
        ("0 0 6,18 ? * *", ["06:00:00", "18:00:00"]),
    ],
)  # fmt: skip
def test_times_of_day(text: str, times: list[str]) -> None:
    found = following(text, datetime(2026, 5, 6, 23, 59, 59, 999999), 2 * len(times))
    assert [moment.isoformat()[11:] for moment in found] == 2 * times
    assert {moment.day for moment in found} == {7, 8}


@pytest.mark.parametrize(
    ("alias", "text"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * sun"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_aliases(alias: str, text: str) -> None:
    start = datetime(2026, 5, 6, 7, 8)
    assert following(alias, start, 30) == following(text, start, 30)


def test_the_rarest_is_found() -> None:
    # February has five Sundays when it has 29 days and begins with one; 2100 is no leap year.
    assert [moment.year for moment in following("0 0 * 2 sun#5", datetime(2026, 1, 1), 4)] == [
        2032,
        2060,
        2088,
        2128,
    ]
    assert [moment.year for moment in following("0 0 29 2 *", datetime(2090, 1, 1), 4)] == [
        2092,
        2096,
        2104,
        2108,
    ]


def test_the_calendar_ends() -> None:
    assert CronExpression.read("0 0 1 1 *").next_local(datetime(9999, 6, 1)) is None
    assert CronExpression.read("* * * * *").next_local(datetime(9999, 12, 31, 23, 59)) is None


@pytest.mark.parametrize(
    ("text", "elapsed"),
    [
        ("0 * * * *", True), ("0 */2 * * *", True), ("0 3/4 * * *", True), ("0 8-18/2 * * *", True), ("@hourly", True),
        ("0 1,*/6 * * *", True), ("0 2 * * *", False), ("*/5 2,3 * * *", False), ("0 0-23 * * *", False),
        ("@daily", False), ("* * 2 * * *", False), ("* * * * * *", True),
    ],
)  # fmt: skip
def test_a_wildcard_or_step_of_hours_follows_elapsed_time(text: str, elapsed: bool) -> None:
    assert CronExpression.read(text).elapsed is elapsed


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ("", "SYNTAX", "five fields"),
        ("* * * *", "SYNTAX", "not 4"),
        ("* * * * * * *", "SYNTAX", "not 7"),
        ("@reboot", "SYNTAX", "@daily"),
        ("@every 5m", "SYNTAX", "give an interval"),
        ("* * * * monday-fri", "SYNTAX", "mon is meant, perhaps"),
        ("* * * january *", "SYNTAX", "jan is meant, perhaps"),
        ("60 * * * *", "SYNTAX", "minute"),
        ("* 24 * * *", "SYNTAX", "hour"),
        ("* * 0 * *", "SYNTAX", "day of month"),
        ("* * 32 * *", "SYNTAX", "day of month"),
        ("* * * 13 *", "SYNTAX", "month"),
        ("* * * foo *", "SYNTAX", "foo"),
        ("* * * * 8", "SYNTAX", "day of week"),
        ("60 * * * * *", "SYNTAX", "second"),
        ("*/0 * * * *", "SYNTAX", "step 0"),
        ("*/90 * * * *", "SYNTAX", "1 to 60"),
        ("-5 * * * *", "SYNTAX", "'-5'"),
        ("1,,2 * * * *", "SYNTAX", "''"),
        ("*-5 * * * *", "SYNTAX", "'*-5'"),
        ("? * * * *", "SYNTAX", "minute"),
        ("R * * * *", "SYNTAX", "minute"),
        ("H(1-5) * * * *", "SYNTAX", "minute"),
        ("* * 15W * *", "SYNTAX", "15w"),
        ("* * L-3 * *", "SYNTAX", "l-3"),
        ("* * * * L", "SYNTAX", "day of week"),
        ("* * * * mon#6", "SYNTAX", "mon#6"),
        ("* * * * mon,fri#1", "SYNTAX", "do not mix"),
        ("٣ * * * *", "SYNTAX", "minute"),
        ("0 0 30 2 *", "NEVER_FIRES", "day 30, which never comes in Feb"),
        ("0 0 30,31 feb *", "NEVER_FIRES", "Feb"),
        ("0 0 31 4,6,9,11 *", "NEVER_FIRES", "Apr, Jun, Sep, Nov"),
        ("0 0 31 2 mon", "NEVER_FIRES", "day 31"),
        ("0 " * 200, "TOO_LONG", str(MAX_CHARACTERS)),
        ("1," * 100_000 + "1 * * * *", "TOO_LONG", str(MAX_CHARACTERS)),
    ],
)
def test_what_is_refused(text: str, reason: str, named: str) -> None:
    with pytest.raises(CronError) as refused:
        CronExpression.read(text)
    assert refused.value.reason == reason
    assert named in str(refused.value)
    assert len(str(refused.value)) < 2 * MAX_CHARACTERS


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789*/-,#LW?@ monfrijan", max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        expression = CronExpression.read(text)
    except CronError:
        return
    first = expression.next_local(datetime(2026, 1, 1))
    assert first is not None and first > datetime(2026, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    day=st.integers(1, 28),
    month=st.integers(1, 12),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    step=st.integers(1, 59),
    form=st.sampled_from(
        ["{m} {h} * * *", "*/{s} {h} {d} * *", "{m} */{h2} * {M} *", "{m} {h} {d} {M} 3", "*/{s} * * * 1-5"]
    ),
)
def test_plain_expressions_are_read_as_croniter_reads_them(
    day: int, month: int, hour: int, minute: int, step: int, form: str
) -> None:
    text = form.format(m=minute, h=hour, d=day, M=month, s=step, h2=hour or 1)
    start = datetime(2026, 3, 4, 5, 6, 7)
    theirs = original(text, start)
    assert following(text, start, 12) == [theirs.get_next(datetime) for _ in range(12)]


def test_nothing_is_remembered_of_what_was_read_but_a_bounded_part() -> None:
    before = len(EXPRESSIONS)
    for day in range(1, 28):
        CronExpression.read(f"0 0 {day} 11 *")
    assert len(EXPRESSIONS) == before


def test_times_ascend() -> None:
    found = following("*/7 */5 */3 * mon", datetime(2026, 1, 1), 500)
    assert all(a < b for a, b in pairwise(found))
