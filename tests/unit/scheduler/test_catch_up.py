"""Which fires are made after a time in which nobody looked, and which are too late."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain.catch_up import COUNTED_AT_MOST, MIN_WINDOW, Step, take_step
from services.scheduler.domain.fires import RunLimit, ScheduleSpec
from services.scheduler.domain.specs import read_spec

pytestmark = pytest.mark.unit
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def step(
    spec: ScheduleSpec, down: timedelta, window: timedelta, now: datetime = NOON, **options: Any
) -> Step:
    asked: dict[str, Any] = {"handled_until": now - down, "limit": 1000} | options
    return take_step(spec, "a-schedule", now=now, window=window, **asked)


def made(found: Step) -> list[datetime]:
    return [fire.nominal_time for fire in found.fires]


def test_down_for_an_hour_with_a_schedule_of_five_minutes() -> None:
    spec = read_spec(cron_expression="*/5 * * * *")
    down_since = NOON - HOUR
    whole = step(spec, HOUR, 2 * HOUR)
    assert made(whole) == spec.between(down_since, NOON, 100)
    assert (len(whole.fires), whole.missed) == (12, 0)
    assert whole.next_fire is not None and whole.next_fire.nominal_time == NOON + 5 * MINUTE
    part = step(spec, HOUR, 20 * MINUTE)
    # The window's own edge is within.
    assert made(part) == spec.between(NOON - 20 * MINUTE - MINUTE, NOON, 100)
    assert (len(part.fires), part.missed) == (5, 7)
    assert part.handled_until == NOON


def test_in_time_one_fire_is_made_when_it_is_due_and_none_before() -> None:
    spec = read_spec(cron_expression="0 12 * * *")
    early = step(spec, HOUR, MIN_WINDOW, now=NOON - timedelta(microseconds=1))
    assert (early.fires, early.missed) == ((), 0)
    assert early.next_fire is not None and early.next_fire.nominal_time == NOON
    assert early.handled_until < NOON
    found = step(spec, HOUR, MIN_WINDOW)
    assert made(found) == [NOON]
    again = step(spec, HOUR, MIN_WINDOW, handled_until=found.handled_until)
    assert again.fires == ()
    assert again.next_fire is not None and again.next_fire.nominal_time == NOON + DAY


def test_nothing_is_handled_beyond_now() -> None:
    # A schedule that is changed to fire sooner must not have lost that.
    found = step(read_spec(cron_expression="0 0 1 1 *"), HOUR, HOUR)
    assert found.handled_until <= NOON


@pytest.mark.parametrize(
    "spec", [read_spec(interval=timedelta(seconds=1)), read_spec(cron_expression="* * * * * *")]
)
@pytest.mark.parametrize("jitter", [timedelta(), DAY])
def test_down_for_a_year_with_a_schedule_of_one_second(spec: ScheduleSpec, jitter: timedelta) -> None:
    spec = ScheduleSpec(spec.times, jitter=jitter)
    before = time.process_time()
    found = step(spec, 365 * DAY, HOUR, limit=100)
    assert time.process_time() - before < 2
    assert len(found.fires) == 100
    assert found.fires[0].due_time >= NOON - HOUR > found.fires[0].nominal_time - timedelta(seconds=2)
    assert found.missed == COUNTED_AT_MOST or found.missed >= 364 * 86_400
    # More are due: the next step goes on where this one stood.
    assert found.next_fire is not None and found.next_fire.due_time < NOON
    following = step(spec, DAY, HOUR, handled_until=found.handled_until, limit=100)
    assert following.missed == 0
    assert following.fires[0] == found.next_fire


def test_an_end_and_a_limit_of_runs_end_the_schedule() -> None:
    ends = read_spec(interval=MINUTE, end_time=NOON - 30 * MINUTE)
    found = step(ends, HOUR, 2 * HOUR)
    assert (len(found.fires), found.next_fire) == (30, None)
    late = step(ends, HOUR, 10 * MINUTE)
    assert (late.fires, late.missed, late.next_fire) == ((), 30, None)
    few = step(read_spec(interval=MINUTE), HOUR, 2 * HOUR, remaining=RunLimit(7))
    assert (len(few.fires), few.next_fire) == (7, None)
    assert few.handled_until == NOON
    none = step(read_spec(interval=MINUTE), HOUR, 2 * HOUR, remaining=RunLimit(0))
    assert (none.fires, none.missed, none.next_fire) == ((), 0, None)


def test_what_is_missed_is_counted_from_the_start() -> None:
    spec = read_spec(interval=MINUTE, start_time=NOON - HOUR)
    assert step(spec, DAY, 10 * MINUTE).missed == 50


@pytest.mark.parametrize("jitter", [timedelta(), 20 * MINUTE])
@pytest.mark.parametrize(
    ("expression", "start"),
    [
        ("*/15 * * * *", datetime(2026, 10, 24, 22, tzinfo=UTC)),
        ("*/15 * * * *", datetime(2026, 3, 28, 22, tzinfo=UTC)),
        ("5,35 1-3 * * *", datetime(2026, 10, 24, 22, tzinfo=UTC)),
        ("5,35 1-3 * * *", datetime(2026, 3, 28, 22, tzinfo=UTC)),
    ],
)
def test_what_a_preview_lists_is_what_fires(expression: str, start: datetime, jitter: timedelta) -> None:
    end = start + 30 * HOUR
    spec = read_spec(cron_expression=expression, time_zone="Europe/Berlin", end_time=end, jitter=jitter)
    for limit in (RunLimit(7), RunLimit()):
        now, handled, left, fires = start, start, limit, []
        while True:
            found = step(spec, DAY, MIN_WINDOW, now=now, handled_until=handled, limit=1, remaining=left)
            fires += made(found)
            left = left.after(len(found.fires))
            assert found.missed == 0
            if found.next_fire is None:
                break
            # A tick comes when the next one is due.
            handled, now = found.handled_until, found.next_fire.due_time
        assert fires == spec.preview(start, 1000, limit)
        assert len(fires) > 6


@settings(max_examples=200, deadline=None)
@given(
    jitter=st.integers(0, 3000),
    window=st.integers(10, 8000),
    down=st.integers(0, 20_000),
    limit=st.integers(1, 20),
    second=st.integers(0, 3599),
    form=st.sampled_from(["*/7 * * * *", "0,1,2,40 */2 * * *", "3,5,7 * * * * *", None]),
)
def test_every_fire_is_made_once_or_missed(
    jitter: int, window: int, down: int, limit: int, second: int, form: str | None
) -> None:
    spread = timedelta(seconds=jitter)
    spec = (
        read_spec(cron_expression=form, jitter=spread)
        if form
        else read_spec(interval=timedelta(seconds=333), jitter=spread)
    )
    now = NOON + timedelta(seconds=second)
    since, oldest = now - timedelta(seconds=down), now - timedelta(seconds=window)
    due = {fire: spec.due_time("a-schedule", fire) for fire in spec.between(since, now, 10_000)}
    handled, fires, missed = since, [], 0
    while True:
        found = step(spec, DAY, now - oldest, now=now, handled_until=handled, limit=limit)
        assert len(found.fires) <= limit and handled <= found.handled_until <= now
        fires += made(found)
        missed += found.missed
        handled = found.handled_until
        assert found.next_fire is not None
        if found.next_fire.due_time > now:
            break
        assert found.fires
    assert fires == [fire for fire, moment in due.items() if oldest <= moment <= now]
    assert missed == len([moment for moment in due.values() if moment < oldest])
    assert found.next_fire.nominal_time == next(
        fire for fire in spec.following(since) if spec.due_time("a-schedule", fire) > now
    )
