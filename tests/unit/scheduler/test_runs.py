"""What becomes of a fire while others run or wait, run states, and pauses between attempts."""

import random
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import ServiceError
from services.scheduler.domain.overlap import (
    MAX_BUFFERED,
    Decision,
    Outcome,
    OverlapPolicy,
    SkipReason,
    decide,
    promote,
)
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.states import FINAL_RUN_STATES, RUN_TRANSITIONS, RunState

pytestmark = pytest.mark.unit
A, B, C, D = (UUID(int=number) for number in range(4))
P = OverlapPolicy
START = Decision(Outcome.START)
BUFFER = Decision(Outcome.BUFFER)
FULL = Decision(Outcome.SKIP, SkipReason.BUFFER_FULL)


@pytest.mark.parametrize("policy", P)
def test_alone_every_fire_starts(policy: OverlapPolicy) -> None:
    assert decide(policy, [], [], []) == START


@pytest.mark.parametrize(
    ("policy", "open_runs", "buffered", "wanted"),
    [
        (P.SKIP, [A], [], Decision(Outcome.SKIP, SkipReason.OVERLAP)),
        (P.SKIP, [], [B], Decision(Outcome.SKIP, SkipReason.OVERLAP)),
        (P.BUFFER_ONE, [A], [], BUFFER),
        (P.BUFFER_ONE, [A], [B], FULL),
        (P.BUFFER_ONE, [], [B], FULL),
        (P.BUFFER_ALL, [A], [], BUFFER),
        (P.BUFFER_ALL, [A], [B, C], BUFFER),
        (P.BUFFER_ALL, [], [B], BUFFER),
        (P.BUFFER_ALL, [A], [B] * MAX_BUFFERED, FULL),
        (P.CANCEL_OTHER, [A], [], Decision(Outcome.BUFFER, cancel=(A,))),
        (P.CANCEL_OTHER, [A, B], [C], Decision(Outcome.BUFFER, cancel=(A, B), supersede=(C,))),
        (P.CANCEL_OTHER, [], [C], Decision(Outcome.START, supersede=(C,))),
        (P.TERMINATE_OTHER, [A, B], [C], Decision(Outcome.START, cancel=(A, B), supersede=(C,))),
        (P.ALLOW_ALL, [A, B], [C], START),
    ],
)
def test_beside_others(
    policy: OverlapPolicy, open_runs: list[UUID], buffered: list[UUID], wanted: Decision
) -> None:
    assert decide(policy, open_runs, [], buffered) == wanted


@pytest.mark.parametrize("policy", [P.CANCEL_OTHER, P.TERMINATE_OTHER])
def test_nothing_waits_for_a_run_that_no_worker_has(policy: OverlapPolicy) -> None:
    assert decide(policy, [], [A], [B]) == Decision(Outcome.START, cancel=(A,), supersede=(B,))


def test_what_is_queued_is_in_the_way_as_what_runs() -> None:
    assert decide(P.SKIP, [], [A], []) == Decision(Outcome.SKIP, SkipReason.OVERLAP)
    assert decide(P.BUFFER_ONE, [], [A], []) == BUFFER


def test_the_bound_of_what_waits_is_the_callers() -> None:
    assert decide(P.BUFFER_ALL, [A], [], [B, C], max_buffered=2) == FULL
    assert decide(P.BUFFER_ONE, [A], [], [], max_buffered=0) == FULL


def test_who_waits_starts_one_after_another() -> None:
    for policy in set(P) - {P.ALLOW_ALL}:
        assert promote([A], [(B, policy), (C, policy)]) == ()
        assert promote([], [(B, policy), (C, policy)]) == (B,)
        assert promote([], []) == ()
    assert promote([A], [(B, P.ALLOW_ALL), (C, P.ALLOW_ALL)]) == (B, C)


def test_of_several_policies_nobody_overtakes() -> None:
    # A backfill has a policy of its own.
    assert promote([], [(A, P.BUFFER_ALL), (B, P.ALLOW_ALL), (C, P.BUFFER_ALL)]) == (A, B)
    assert promote([A], [(B, P.BUFFER_ONE), (C, P.ALLOW_ALL)]) == ()
    assert promote([], [(A, P.ALLOW_ALL), (B, P.BUFFER_ALL), (C, P.ALLOW_ALL)]) == (A,)


@given(policy=st.sampled_from(P), events=st.lists(st.booleans(), max_size=60))
def test_runs_of_a_schedule_in_any_order_of_fires_and_ends(policy: OverlapPolicy, events: list[bool]) -> None:
    open_runs: list[UUID] = []
    waiting: list[UUID] = []
    for number, is_fire in enumerate(events):
        if is_fire:
            found = decide(policy, open_runs, [], waiting, max_buffered=5)
            waiting = [run for run in waiting if run not in found.supersede]
            if policy is P.TERMINATE_OTHER:
                open_runs = []
            if found.outcome is not Outcome.SKIP:
                (open_runs if found.outcome is Outcome.START else waiting).append(UUID(int=number))
        elif open_runs:
            open_runs.pop(0)
        for run in promote(open_runs, [(run, policy) for run in waiting]):
            waiting.remove(run)
            open_runs.append(run)
        assert policy is P.ALLOW_ALL or len(open_runs) <= 1
        assert len(waiting) <= (5 if policy is P.BUFFER_ALL else 1)
        assert open_runs or not waiting, "nobody waits for nothing"


def test_moves_of_a_run() -> None:
    assert set(RUN_TRANSITIONS) == set(RunState)
    assert [state for state in RunState if not RUN_TRANSITIONS[state]] == [
        s for s in RunState if s in FINAL_RUN_STATES
    ]
    assert RunState.SKIPPED.final and not RunState.RUNNING.final
    assert [state for state in RunState if state.open] == [RunState.QUEUED, RunState.RUNNING]
    assert {outcome.value for outcome in Outcome} <= {state.value for state in RunState}
    reached, frontier = {RunState.PENDING}, [RunState.PENDING]
    while frontier:
        fresh = RUN_TRANSITIONS[frontier.pop()] - reached
        reached |= fresh
        frontier += fresh
    assert reached == set(RunState)


def seconds(policy: RetryPolicy, attempt: int, chance: float = 0.0, reason: str = "ANY") -> float | None:
    pause = policy.pause_after(attempt, reason, lambda: chance)
    return None if pause is None else pause.total_seconds()


def test_pauses_grow_up_to_a_bound() -> None:
    policy = RetryPolicy(
        maximum_attempts=8, initial_interval=timedelta(seconds=3), maximum_interval=timedelta(seconds=60)
    )
    assert [seconds(policy, attempt) for attempt in range(1, 9)] == [3, 6, 12, 24, 48, 60, 60, None]
    policy.check()


def test_chance_shortens_a_pause() -> None:
    policy = RetryPolicy(initial_interval=timedelta(seconds=100), jitter=0.25)
    assert seconds(policy, 1, chance=0) == 100
    assert seconds(policy, 1, chance=0.5) == 87.5
    draw = random.Random(7).random
    drawn = [policy.pause_after(1, "ANY", draw) for _ in range(50)]
    assert len(set(drawn)) == 50
    assert all(pause is not None and 75 < pause.total_seconds() <= 100 for pause in drawn)


def test_some_reasons_are_final() -> None:
    policy = RetryPolicy(non_retryable_reasons=frozenset({"BUDGET_EXCEEDED"}))
    assert seconds(policy, 1, reason="BUDGET_EXCEEDED") is None
    assert seconds(policy, 1, reason="EXECUTOR_LOST") == 10
    assert seconds(RetryPolicy(maximum_attempts=1), 1) is None


@given(
    initial=st.floats(0, 86_400),
    longest=st.floats(0, 86_400),
    coefficient=st.floats(1, 100),
    attempts=st.integers(2, 100),
)
def test_any_policy_within_its_bounds(
    initial: float, longest: float, coefficient: float, attempts: int
) -> None:
    low, high = sorted((timedelta(seconds=initial), timedelta(seconds=longest)))
    policy = RetryPolicy(attempts, low, coefficient, high)
    policy.check()
    pauses = [policy.pause_after(attempt, "ANY", lambda: 0.0) for attempt in range(1, attempts)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == attempts - 1
    tolerance = timedelta(microseconds=1)
    assert all(low - tolerance <= pause <= high + tolerance for pause in known)
    assert all(a <= b + tolerance for a, b in pairwise(known))


def test_policies_out_of_bounds_are_refused_by_field() -> None:
    worst = RetryPolicy(0, timedelta(seconds=-1), 0.5, timedelta(days=2), 1.5, frozenset({""}))
    with pytest.raises(ServiceError) as refused:
        worst.check("task.retry_policy")
    assert [violation.field for violation in refused.value.violations] == [
        f"task.retry_policy.{field}"
        for field in (
            "maximum_attempts", "initial_interval", "backoff_coefficient", "maximum_interval", "jitter",
            "non_retryable_reasons",
        )
    ]  # fmt: skip
    with pytest.raises(ServiceError, match="backoff_coefficient"):
        RetryPolicy(backoff_coefficient=float("nan")).check()
