"""Fires around every change of the clock in the tz database, against the rule walked out minute by minute."""

import io
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain import local_time
from services.scheduler.domain.cron import CronExpression
from services.scheduler.domain.fires import CronTimes, ScheduleSpec
from services.scheduler.domain.local_time import stretches

from .clock_changes import MINUTE, Change, changes, fires_by_the_rule

pytestmark = pytest.mark.unit
HOUR = timedelta(hours=1)
YEARS = (2020, 2040)

DISTINCT = {
    (change.at, change.before, change.after): change for of in changes(*YEARS).values() for change in of
}
# Besides those of the years promised, the zones that changed sides of the date line.
SHAPES = {change.shape: change for change in DISTINCT.values()} | {
    change.shape: change
    for of in changes(1980, 2019).values()
    for change in of
    if abs(change.after - change.before) >= 12 * HOUR
}

Case = tuple[str, bool, Callable[[datetime], bool]]


def spec(expression: str, zone: str) -> ScheduleSpec:
    return ScheduleSpec(CronTimes(CronExpression.read(expression), zone))


def on(wall: datetime) -> int:
    return wall.isoweekday() % 7


def around(change: Change) -> list[Case]:
    """Expressions that are hit by a change, whether they follow elapsed time, and what they match."""
    wall = (change.at + change.before).replace(tzinfo=None)
    near = sorted({(wall + hours * HOUR).hour for hours in (-2, -1, 0, 1, 2)})
    minutes = sorted({wall.minute, (wall.minute + 29) % 60})
    hours, day = ",".join(map(str, near)), on(wall)
    low, high = (wall - HOUR).hour, (wall + HOUR).hour
    in_range = {(low + step) % 24 for step in range((high - low) % 24 + 1)}
    m, h = wall.minute, wall.hour
    return [
        (f"{m},{(m + 29) % 60} {hours} * * *", False, lambda w: w.minute in minutes and w.hour in near),
        (f"*/10 {low}-{high} * * *", False, lambda w: w.minute % 10 == 0 and w.hour in in_range),
        (f"{m} {h} * * {day}", False, lambda w: w.minute == m and w.hour == h and on(w) == day),
        ("0 0 * * *", False, lambda w: (w.hour, w.minute) == (0, 0)),
        ("59 0-23 * * *", False, lambda w: w.minute == 59),
        ("*/15 * * * *", True, lambda w: w.minute % 15 == 0),
        (f"{m} * * * *", True, lambda w: w.minute == m),
        ("*/7 */2 * * *", True, lambda w: w.minute % 7 == 0 and w.hour % 2 == 0),
        (f"30 {h % 3}-23/3 * * {day}", True, lambda w: w.minute == 30 and w.hour % 3 == h % 3 and on(w) == day),
    ]  # fmt: skip


def check(change: Change, case: Case, hours: float) -> list[datetime]:
    expression, elapsed, matches = case
    start = change.at - hours * HOUR
    minutes = int(2 * hours * 60)
    wanted = fires_by_the_rule(change, matches, elapsed, start, minutes)
    found = spec(expression, change.zone).between(start, start + minutes * MINUTE, minutes)
    assert found == wanted, (expression, change)
    assert all(a < b for a, b in pairwise(found))
    return found


def test_every_change_is_found() -> None:
    known = {of: name for name, of in changes(*YEARS).items()}
    # Zones with the same changes in the same years are found alike: one of each.
    alike = {tuple((c.at, c.before, c.after) for c in of): name for of, name in known.items()}
    assert len(alike) > 40
    for wanted, zone in alike.items():
        found = []
        earlier = None
        for stretch in stretches(zone, datetime(YEARS[0], 1, 1)):  # noqa: DTZ001
            if stretch.start.year > YEARS[1]:
                break
            if earlier is not None and stretch.offset != earlier.offset:
                found.append((stretch.start, earlier.offset, stretch.offset))
            assert earlier is None or stretch.start == earlier.end
            earlier = stretch
        assert found == [(at.replace(tzinfo=None), before, after) for at, before, after in wanted], zone


@pytest.mark.parametrize("case", range(9))
def test_each_kind_of_change(case: int) -> None:
    assert len(SHAPES) > 60
    fired = 0
    for change in SHAPES.values():
        fired += len(check(change, around(change)[case], 5))
    assert fired >= len(SHAPES)


@pytest.mark.parametrize("case", [0, 6])
def test_each_change(case: int) -> None:
    assert len(DISTINCT) > 1000
    for change in DISTINCT.values():
        check(change, around(change)[case], 1.25)


def test_the_next_fire_is_the_same_from_anywhere() -> None:
    for change in SHAPES.values():
        for expression, *_ in around(change)[::2]:
            schedule = spec(expression, change.zone)
            start = change.at - 4 * HOUR
            fires = schedule.between(start, change.at + 30 * HOUR, 10_000)
            moments = [start + number * 17 * MINUTE for number in range(28)]
            moments += [fire + timedelta(microseconds=step) for fire in fires[:12] for step in (-1, 0, 1)]
            for moment in moments:
                later = [fire for fire in fires if fire > moment]
                if later:
                    assert schedule.next_after(moment) == later[0]


def test_changes_near_the_end_of_a_year() -> None:
    # Years are looked up apart; what a clock repeats or skips may reach into another one.
    near = {
        (change.at, change.before, change.after): change
        for of in changes(1900, 2040).values()
        for change in of
        if (change.at + 3 * HOUR).year != (change.at - 3 * HOUR).year
        and not any(offset % MINUTE for offset in (change.before, change.after))
    }
    assert any(change.before > change.after for change in near.values())
    for change in near.values():
        for case in around(change):
            check(change, case, 4)


def zone_of(rule: str) -> ZoneInfo:
    """A zone that keeps a rule in POSIX's form, as a file of the database would."""
    header = b"TZif2".ljust(20, b"\0") + struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    one_type = struct.pack(">lbb", 0, 0, 0) + b"AAA\0"
    return ZoneInfo.from_file(io.BytesIO(2 * (header + one_type) + f"\n{rule}\n".encode()))


def test_an_hour_that_is_repeated_across_new_year(monkeypatch: pytest.MonkeyPatch) -> None:
    # The database has none. At half past midnight the clock is put back to half past eleven, in the old year of UTC.
    made = zone_of("AAA0BBB,J90/2,J365/24:30")
    monkeypatch.setattr(local_time, "_zone", lambda name: made)
    change = Change(datetime(2026, 12, 31, 23, 30, tzinfo=UTC), HOUR, timedelta(), "made/up for new year")
    for case in around(change):
        check(change, case, 4)
    local_time._stretches_in.cache_clear()


@st.composite
def expressions(draw: st.DrawFn) -> Case:
    def some(size: int) -> set[int]:
        return draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=6))

    minutes, hours, days = some(60), some(24), some(7)
    elapsed = draw(st.booleans())
    if elapsed:
        step = draw(st.integers(1, 24))
        hour, hours = (
            draw(st.sampled_from([f"*/{step}", f"0/{step}", f"0-23/{step}"])),
            set(range(0, 24, step)),
        )
    else:
        hour = ",".join(map(str, hours))
    anyday = draw(st.booleans())
    weekday = "*" if anyday else ",".join(map(str, days))
    text = f"{','.join(map(str, minutes))} {hour} * * {weekday}"
    return (
        text,
        elapsed,
        lambda w: w.minute in minutes and w.hour in hours and (anyday or on(w) in days),
    )


@settings(max_examples=100, deadline=None)
@given(change=st.sampled_from(list(SHAPES.values())), case=expressions(), seconds=st.integers(0, 59))
def test_any_expression(change: Change, case: Case, seconds: int) -> None:
    check(change, case, 6)
    # From between two minutes, too.
    start = change.at - HOUR + timedelta(seconds=seconds)
    fires = spec(case[0], change.zone).between(start, start + 2 * HOUR, 1000)
    wanted = fires_by_the_rule(change, case[2], case[1], change.at - 2 * HOUR, 4 * 60)
    assert fires == [fire for fire in wanted if start < fire <= start + 2 * HOUR]
