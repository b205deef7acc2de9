"""What becomes of a run when its attempt is over, and of its schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import (
    CANCELLED,
    Claim,
    EndedRun,
    Failure,
    Outcome,
    RunContent,
    TurnNow,
    TurnState,
    Usage,
    given_up,
    outcome_of_stopped,
    state_after,
    timed_out,
)
from services.scheduler.domain.states import RunState

pytestmark = pytest.mark.unit
CONTENT = RunContent("a", "b", {}, {}, {}, 0, timedelta(minutes=1), RetryPolicy(), 0.0)
FAILED = Outcome(RunState.FAILED, failure=Failure("MODEL_ERROR", "because"))


@pytest.mark.parametrize(
    ("retries", "in_time", "cancelled", "state"),
    [
        (True, True, False, RunState.QUEUED),
        (True, False, False, RunState.FAILED),
        (True, True, True, RunState.CANCELLED),
        (True, False, True, RunState.CANCELLED),
        (False, True, False, RunState.FAILED),
        # It failed for good before anybody could stop it.
        (False, True, True, RunState.FAILED),
    ],
)
def test_after_an_attempt_that_failed(retries: bool, in_time: bool, cancelled: bool, state: RunState) -> None:
    assert state_after(FAILED, retries=retries, in_time=in_time, cancelled=cancelled) is state


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.FAILED])
def test_after_any_other_attempt(state: RunState) -> None:
    assert state_after(Outcome(state), retries=False, in_time=True, cancelled=False) is state


@pytest.mark.parametrize(
    ("turn", "cancelled", "late"),
    [
        (TurnState.OPEN, RunState.CANCELLED, RunState.TIMED_OUT),
        (TurnState.INTERRUPTED, RunState.CANCELLED, RunState.TIMED_OUT),
        (TurnState.SUCCEEDED, RunState.SUCCEEDED, RunState.SUCCEEDED),
        (TurnState.FAILED, RunState.FAILED, RunState.TIMED_OUT),
    ],
)
def test_an_attempt_that_was_to_end(turn: TurnState, cancelled: RunState, late: RunState) -> None:
    now = TurnNow(turn, usage=Usage(input_tokens=3), cost_usd=0.5)
    for was_asked, state in ((True, cancelled), (False, late)):
        outcome = outcome_of_stopped(now, CONTENT, cancelled=was_asked)
        assert (outcome.state, outcome.usage, outcome.cost_usd) == (state, now.usage, 0.5)


def test_a_run_that_nobody_brings_to_its_end() -> None:
    def claim(seconds_left: float, *, cancel_requested: bool = False) -> Claim:
        ids = (uuid4(), uuid4(), uuid4())
        return Claim(*ids, "w", 21, 1, CONTENT, True, None, None, 0.0, seconds_left, cancel_requested)

    found = given_up(claim(5))
    assert (found.state, found.failure and found.failure.reason) == (RunState.FAILED, "TAKE_OVERS_EXHAUSTED")
    assert given_up(claim(0)) == timed_out(CONTENT)
    assert given_up(claim(-5, cancel_requested=True)) == CANCELLED


def ended(state: RunState, failure: Failure | None = None) -> EndedRun:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    ids = (UUID(int=1), uuid4(), uuid4(), uuid4(), None)
    return EndedRun(*ids, state, failure, 1, None, Usage(), 0.0, now, now)


def test_which_ends_are_reason_for_a_schedule_to_pause() -> None:
    assert {state for state in RunState if ended(state).pause_note} == {RunState.FAILED, RunState.TIMED_OUT}
    failed = ended(RunState.FAILED, Failure("R" * 500, "because"))
    assert failed.pause_note == f"paused since run {UUID(int=1)} ended as FAILED: {'R' * 200}"
    assert str(ended(RunState.TIMED_OUT).pause_note).endswith("ended as TIMED_OUT: TIMED_OUT")
