"""What a look at a schedule comes to: its fires, and who gives way to whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.backfills import Backfill, BackfillState
from services.scheduler.domain.firing import (
    FIRES_AT_ONCE,
    FirePlan,
    OpenRun,
    look_at_backfill,
    look_at_schedule,
)
from services.scheduler.domain.overlap import MAX_BUFFERED, OverlapPolicy, SkipReason, promote
from services.scheduler.domain.schedules import (
    Schedule,
    ScheduleContent,
    ScheduleState,
    Standing,
    Timing,
    standing_of,
)
from services.scheduler.domain.states import RunState

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 28, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
P, R = OverlapPolicy, RunState
NOBODY = UUID(int=0)


def schedule(policy: P = P.ALLOW_ALL, since: timedelta = MINUTE, **values: object) -> Schedule:
    """One that fires at each whole minute, and was looked at `since` ago."""
    content = ScheduleContent(
        **{
            "name": "",
            "timing": Timing(interval=MINUTE),
            "variables": {},
            "overlap_policy": policy,
            "catch_up_window": timedelta(days=1),
            "pause_on_failure": False,
            "remaining_runs": None,
            **values,
        }  # type: ignore[arg-type]
    )
    standing = standing_of(NOBODY, content, NOW - since)
    return Schedule(NOBODY, NOBODY, NOBODY, NOBODY, content, standing, "", 0, None, 1, NOW, NOW)


def numbers() -> Iterator[UUID]:
    return map(UUID, (f"{number:032x}" for number in count(1)))


def look(of: Schedule, *open_runs: OpenRun, renders: bool = True, limit: int = FIRES_AT_ONCE):
    return look_at_schedule(of, open_runs, now=NOW, renders=renders, new_id=numbers().__next__, limit=limit)


def states(plan: FirePlan) -> list[tuple[R, SkipReason | None]]:
    return [(run.state, run.skip_reason) for run in plan.runs]


def run(number: int, state: R) -> OpenRun:
    return OpenRun(UUID(int=number << 64), state)


def test_a_look_makes_what_is_due_and_says_what_comes_next() -> None:
    found = look(schedule(since=3 * MINUTE))
    noon = NOW.replace(second=0)
    assert [made.fire_time for made in found.plan.runs] == [noon - 2 * MINUTE, noon - MINUTE, noon]
    assert found.standing == Standing(ScheduleState.ACTIVE, noon, noon + MINUTE, noon + MINUTE)
    assert (found.remaining_runs, found.missed) == (None, 0)


def test_the_limit_of_fires_ends_a_schedule_those_that_are_skipped_included() -> None:
    found = look(schedule(P.SKIP, since=9 * MINUTE, remaining_runs=2), run(1, R.RUNNING))
    assert states(found.plan) == [(R.SKIPPED, SkipReason.OVERLAP)] * 2
    assert (found.standing.state, found.remaining_runs) == (ScheduleState.ENDED, 0)


def test_later_fires_of_one_look_meet_the_earlier_ones() -> None:
    def after(policy: P, *open_runs: OpenRun) -> list[tuple[R, SkipReason | None]]:
        return states(look(schedule(policy, since=3 * MINUTE), *open_runs).plan)

    queued, held, superseded = (R.QUEUED, None), (R.PENDING, None), (R.SKIPPED, SkipReason.SUPERSEDED)
    full, gone = (R.SKIPPED, SkipReason.BUFFER_FULL), (R.CANCELLED, None)
    assert after(P.SKIP) == [queued, *[(R.SKIPPED, SkipReason.OVERLAP)] * 2]
    assert after(P.BUFFER_ONE) == [queued, held, full]
    assert after(P.BUFFER_ALL) == [queued, held, held]
    assert after(P.CANCEL_OTHER) == after(P.TERMINATE_OTHER) == [gone, gone, queued]
    assert after(P.CANCEL_OTHER, run(1, R.RUNNING)) == [superseded, superseded, held]
    assert after(P.TERMINATE_OTHER, run(1, R.RUNNING)) == [gone, gone, queued]


def test_those_that_give_way_are_named_once() -> None:
    open_runs = (run(1, R.RUNNING), run(2, R.QUEUED), run(3, R.PENDING))
    found = look(schedule(P.CANCEL_OTHER, since=3 * MINUTE), *open_runs)
    assert found.plan.cancel == [open_runs[0].id, open_runs[1].id]
    assert found.plan.supersede == [open_runs[2].id]


def test_nobody_gives_way_to_a_run_that_cannot_be() -> None:
    found = look(schedule(P.TERMINATE_OTHER), run(1, R.RUNNING), renders=False)
    assert (states(found.plan), found.plan.cancel) == ([(R.FAILED, None)], [])


@given(
    policy=st.sampled_from(P),
    gaps=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    ends=st.lists(st.booleans(), min_size=12, max_size=12),
    limit=st.integers(1, 7),
)
def test_looks_at_any_times_make_each_fire_once_and_keep_the_policy(
    policy: P, gaps: list[int], ends: list[bool], limit: int
) -> None:
    now, of, ids = NOW, schedule(policy, since=timedelta()), numbers()
    open_runs: dict[UUID, R] = {}
    made: list[datetime] = []
    for gap, end in zip(gaps, ends, strict=False):
        now += timedelta(seconds=gap)
        while of.standing.next_due_time is not None and of.standing.next_due_time <= now:
            found = look_at_schedule(
                of,
                [OpenRun(key, state) for key, state in open_runs.items()],
                now=now,
                renders=True,
                new_id=ids.__next__,
                limit=limit,
            )
            made += [fire.fire_time for fire in found.plan.runs]
            for key in found.plan.cancel:
                if open_runs[key] is R.QUEUED:
                    del open_runs[key]
            for key in found.plan.supersede:
                del open_runs[key]
            open_runs |= {fire.id: fire.state for fire in found.plan.runs if not fire.state.final}
            of = replace(of, standing=found.standing)
        # A worker takes what is queued, and may end what runs.
        open_runs = {key: R.RUNNING if state is R.QUEUED else state for key, state in open_runs.items()}
        if end:
            open_runs = {key: state for key, state in open_runs.items() if state is not R.RUNNING}
        going = [key for key, state in open_runs.items() if state is not R.PENDING]
        waiting = [(key, policy) for key, state in open_runs.items() if state is R.PENDING]
        for key in promote(going, waiting):
            open_runs[key] = R.QUEUED
        if policy not in (P.ALLOW_ALL, P.TERMINATE_OTHER):
            assert sum(state is not R.PENDING for state in open_runs.values()) <= 1
    first = NOW.replace(second=0) + MINUTE
    assert made == [first + number * MINUTE for number in range((now - first) // MINUTE + 1)]


def backfill(policy: P, minutes: int) -> Backfill:
    start = NOW.replace(second=0) - minutes * MINUTE
    before = start - timedelta(microseconds=1)
    return Backfill(
        NOBODY, NOBODY, NOBODY, NOBODY, start, NOW, policy, BackfillState.RUNNING, before, 0, NOW, None
    )


def test_a_backfill_makes_the_fires_of_its_span_both_ends_included() -> None:
    asked = backfill(P.ALLOW_ALL, 2)
    found = look_at_backfill(schedule(), asked, [], now=NOW, renders=True, new_id=numbers().__next__, limit=2)
    assert [fire.fire_time for fire in found.plan.runs] == [asked.start_time, asked.start_time + MINUTE]
    assert (found.handled_until, found.done, found.waits) == (asked.start_time + MINUTE, False, False)
    assert {fire.due_time for fire in found.plan.runs} == {NOW}


@pytest.mark.parametrize(("held_back", "made"), [(0, 3), (MAX_BUFFERED - 2, 2), (MAX_BUFFERED, 0)])
def test_a_backfill_makes_no_more_than_may_wait(held_back: int, made: int) -> None:
    open_runs = [run(1, R.RUNNING), *[run(2 + number, R.PENDING) for number in range(held_back)]]
    found = look_at_backfill(
        schedule(),
        backfill(P.BUFFER_ALL, 9),
        open_runs,
        now=NOW,
        renders=True,
        new_id=numbers().__next__,
        limit=3,
    )
    assert [fire.state for fire in found.plan.runs] == [R.PENDING] * made
    assert (found.done, found.waits) == (False, made < 3)
