"""Workers carry runs to their end: through crashes, hand-overs, failures, wishes to cancel, and limits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.errors import ErrorKind
from services.kernel.testing import a_caller
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import Failure, TurnNow, TurnState, Usage
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker.ports import Progress, Recorded

from .fake_sessions import ENDS, refused
from .working import AT_ONCE, Floor, Queue, floor, owner, states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


async def test_a_run_succeeds_in_a_session_of_its_owners(place: Floor) -> None:
    await place.worker()
    made = await place.run(prompt_template="greet the {{ 'world' }}", run_timeout=timedelta(minutes=2))
    shown = await place.ended(made)
    run = shown.run
    assert (run.state, run.result, run.failure) == (RunState.SUCCEEDED, "hello there", None)
    assert (run.usage, run.cost_usd) == (Usage(input_tokens=10, output_tokens=5), 0.5)
    assert run.start_time is not None and run.end_time is not None
    assert run.create_time <= run.start_time <= run.end_time
    (attempt,) = shown.attempts
    assert (attempt.state, attempt.session_id) == (RunState.SUCCEEDED, run.session_id)
    ((session_id, session),) = place.sessions.sessions.items()
    assert session_id == run.session_id
    assert (session.owner.user_id, session.owner.organization_id) == (run.user_id, run.organization_id)
    assert (session.new.name, dict(session.new.labels)) == ("a task", {"team": "core"})
    assert session.new.turn_timeout == timedelta(minutes=2)
    assert place.sessions.prompts == ["greet the world"]


async def test_two_workers_share_the_runs_of_one_database(place: Floor) -> None:
    made = [await place.run() for _ in range(12)]
    await asyncio.gather(place.worker(2), place.worker(2))
    for run in made:
        assert (await place.ended(run)).run.state is RunState.SUCCEEDED
    assert len(place.sessions.prompts) == len(place.sessions.sessions) == 12


@pytest.mark.parametrize("moment", ["create_session", "send_message", "wait_turn"])
async def test_a_run_whose_worker_died_is_taken_over_not_repeated(place: Floor, moment: str) -> None:
    """The worker dies in its call, or in the next one when that was carried out and its answer was lost."""
    stuck = asyncio.Event()

    def wait(call: str) -> None:
        if call == moment:
            stuck.set()

    # Whatever it has asked for by then it does not come to know.
    place.sessions.lost_answer = lambda call: (
        wait(call) or (refused(ErrorKind.UNAVAILABLE, "RPC_UNAVAILABLE") if call == moment else None)
    )
    place.sessions.fault = lambda call: wait(call) if call == "wait_turn" else None
    made = await place.run(prompt_template="stay")
    first = await place.worker()
    await asyncio.wait_for(stuck.wait(), 10)
    await place.crash(first)
    place.sessions.lost_answer = place.sessions.fault = lambda call: None
    await place.worker()
    assert (await place.read(made)).run.state is RunState.RUNNING
    await place.expire(made)
    await place.begun(made)
    (session,) = place.sessions.sessions.values()
    (turn,) = session.turns.values()
    turn.end(TurnNow(TurnState.SUCCEEDED, result="at last"))
    shown = await place.ended(made)
    assert (shown.run.state, shown.run.result, states(shown)) == (
        RunState.SUCCEEDED,
        "at last",
        [RunState.SUCCEEDED],
    )
    assert place.sessions.prompts == ["stay"]


async def test_a_worker_that_leaves_hands_over_at_once(place: Floor) -> None:
    # A lease that would outlast the test.
    first = await place.worker(lease_seconds=600)
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    place.workers.remove(first)
    await first.drain()
    second = await place.worker()
    async with asyncio.timeout(10):
        while not second.under_way:
            await asyncio.sleep(0.01)
    (session,) = place.sessions.sessions.values()
    next(iter(session.turns.values())).end(ENDS["greet"] or TurnNow(TurnState.OPEN))
    assert states(await place.ended(made)) == [RunState.SUCCEEDED]
    assert place.sessions.prompts == ["stay"]


async def test_a_worker_stops_when_another_has_its_run(place: Floor) -> None:
    first = await place.worker(1)
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    await place.change(made, lease_holder="another", epoch=99)
    async with asyncio.timeout(10):
        while first.under_way:
            await asyncio.sleep(0.01)
    assert (await place.read(made)).run.state is RunState.RUNNING
    # It is free for others, and the turn of the run goes on.
    assert (await place.ended(await place.run())).run.state is RunState.SUCCEEDED
    (turn,) = next(iter(place.sessions.sessions.values())).turns.values()
    assert not turn.ended.is_set()


async def test_a_failed_turn_is_tried_again_in_a_new_session(place: Floor) -> None:
    ends = [ENDS["fail"], ENDS["fail"], ENDS["greet"]]
    place.sessions.ends["again"] = None
    await place.worker()
    made = await place.run(prompt_template="again")
    for number, end in enumerate(ends, 1):
        await place.until(
            made, lambda found, number=number: len(found.attempts) == number and found.attempts[-1].turn_id
        )
        (turn,) = list(place.sessions.sessions.values())[-1].turns.values()
        assert end is not None
        turn.end(end)
    shown = await place.ended(made)
    assert states(shown) == [RunState.FAILED, RunState.FAILED, RunState.SUCCEEDED]
    assert (shown.run.state, shown.run.failure, shown.run.cost_usd) == (RunState.SUCCEEDED, None, 1.5)
    assert len({attempt.session_id for attempt in shown.attempts}) == 3
    assert shown.attempts[0].failure == Failure("MODEL_ERROR", "because of MODEL_ERROR")


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (AT_ONCE, 3),
        (replace(AT_ONCE, maximum_attempts=1), 1),
        (replace(AT_ONCE, non_retryable_reasons=frozenset({"MODEL_ERROR"})), 1),
        (RetryPolicy(initial_interval=timedelta(hours=2), maximum_interval=timedelta(hours=2)), 1),
    ],
)
async def test_the_last_failure_is_the_runs(place: Floor, policy: RetryPolicy, attempts: int) -> None:
    await place.worker()
    shown = await place.ended(await place.run(prompt_template="fail", retry_policy=policy))
    assert states(shown) == [RunState.FAILED] * attempts
    assert (shown.run.state, shown.run.failure) == (
        RunState.FAILED,
        Failure("MODEL_ERROR", "because of MODEL_ERROR"),
    )


async def test_the_end_of_a_pause_is_not_looked_for(place: Floor) -> None:
    await place.worker(look_seconds=600)
    policy = replace(
        AT_ONCE, initial_interval=timedelta(seconds=0.2), maximum_interval=timedelta(seconds=0.2)
    )
    shown = await place.ended(await place.run(prompt_template="fail", retry_policy=policy))
    assert states(shown) == [RunState.FAILED] * 3
    for before, after in itertools.pairwise(shown.attempts):
        assert before.end_time is not None
        assert after.start_time - before.end_time < timedelta(seconds=5)


async def test_the_attempts_share_the_budget(place: Floor) -> None:
    await place.worker()
    policy = replace(AT_ONCE, maximum_attempts=5)
    made = await place.run(
        prompt_template="fail", retry_policy=policy, run_budget_usd=1.2, sdk_options={"max_budget_usd": 1.0}
    )
    shown = await place.ended(made)
    budgets = [session.new.sdk_options["max_budget_usd"] for session in place.sessions.sessions.values()]
    assert budgets == [1.0, 0.7, 0.2]
    assert shown.run.failure == Failure(
        "BUDGET_EXCEEDED", "the attempts before have used up the run's budget"
    )
    assert len(shown.attempts) == 4


async def test_a_run_under_way_is_cancelled(place: Floor) -> None:
    await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    asked = await place.runs.cancel(owner(made), made.run.id, "")
    assert (asked.run.state, asked.run.cancel_requested) == (RunState.RUNNING, True)
    shown = await place.ended(made)
    assert (shown.run.state, states(shown), shown.run.cost_usd) == (
        RunState.CANCELLED,
        [RunState.CANCELLED],
        0.5,
    )


async def test_the_successor_of_a_dead_worker_cancels(place: Floor) -> None:
    first = await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    await place.crash(first)
    await place.runs.cancel(owner(made), made.run.id, "")
    await place.expire(made)
    await place.worker()
    assert (await place.ended(made)).run.state is RunState.CANCELLED
    (turn,) = next(iter(place.sessions.sessions.values())).turns.values()
    assert turn.now.state is TurnState.INTERRUPTED
    assert place.sessions.prompts == ["stay"]


async def test_a_person_who_stops_the_turn_ends_the_run(place: Floor) -> None:
    await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    ((session_id, session),) = place.sessions.sessions.items()
    await place.sessions.interrupt(session.owner, session_id, next(iter(session.turns)), "")
    assert (await place.ended(made)).run.state is RunState.CANCELLED


async def test_a_run_takes_no_longer_than_it_may(place: Floor) -> None:
    await place.worker()
    shown = await place.ended(await place.run(prompt_template="stay", run_timeout=timedelta(seconds=0.2)))
    assert (shown.run.state, states(shown)) == (RunState.TIMED_OUT, [RunState.TIMED_OUT])
    assert shown.run.failure == Failure("RUN_TIMEOUT", "the run took longer than 0.2 s")
    (turn,) = next(iter(place.sessions.sessions.values())).turns.values()
    assert turn.now.state is TurnState.INTERRUPTED


async def test_what_passes_is_met_with_patience(place: Floor) -> None:
    left = {"create_session": 2, "send_message": 2, "wait_turn": 1}

    def fault(call: str) -> object:
        left[call] = left.get(call, 0) - 1
        return refused(ErrorKind.UNAVAILABLE, "RPC_UNAVAILABLE") if left[call] >= 0 else None

    place.sessions.fault = fault  # type: ignore[assignment]
    await place.worker(draw=lambda: 0.0)
    shown = await place.ended(await place.run())
    assert states(shown) == [RunState.SUCCEEDED]
    assert place.sessions.prompts == ["greet"]


@pytest.mark.parametrize(
    ("kind", "attempts"), [(ErrorKind.INVALID_ARGUMENT, 1), (ErrorKind.INTERNAL, 3), (ErrorKind.NOT_FOUND, 1)]
)
async def test_a_refusal_fails_the_run(place: Floor, kind: ErrorKind, attempts: int) -> None:
    place.sessions.fault = lambda call: refused(kind, "A_REASON") if call == "send_message" else None
    await place.worker()
    shown = await place.ended(await place.run())
    assert states(shown) == [RunState.FAILED] * attempts
    assert shown.run.failure == Failure("A_REASON", "A_REASON")


async def test_a_session_that_its_owner_has_deleted_does_not_come_again(place: Floor) -> None:
    first = await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    await place.crash(first)
    place.sessions.sessions.clear()
    place.sessions._done.clear()
    await place.expire(made)
    await place.worker()
    shown = await place.ended(made)
    assert shown.run.failure == Failure("SESSION_NOT_FOUND", "SESSION_NOT_FOUND")
    assert (place.sessions.prompts, place.sessions.sessions) == (["stay"], {})


async def test_no_places_no_runs(place: Floor) -> None:
    idle = await place.worker(0)
    made = await place.run()
    await place.worker(1)
    await place.ended(made)
    assert idle.under_way == 0


async def test_a_worker_carries_no_more_than_its_places(place: Floor) -> None:
    worker = await place.worker(2, look_seconds=60)
    made = [await place.run(prompt_template="stay") for _ in range(3)]
    for run in made[:2]:
        await place.begun(run)
    assert (worker.under_way, (await place.read(made[2])).run.state) == (2, RunState.QUEUED)
    # A place is free: the next begins at once, and nothing but that wakes the worker.
    await place.runs.cancel(owner(made[0]), made[0].run.id, "")
    await place.begun(made[2])


async def test_the_next_run_does_not_wait_until_the_last_is_written_down(place: Floor) -> None:
    written = asyncio.Event()

    class Slow(Queue):
        async def record(self, steps: Sequence[Progress]) -> list[Recorded]:
            if any(step.outcome for step in steps):
                await written.wait()
            return await super().record(steps)

    made = [await place.run() for _ in range(2)]
    await place.worker(1, queue=Slow(place.database), look_seconds=60)
    await place.until(made[1], lambda found: found.run.state is RunState.RUNNING)
    assert (await place.read(made[0])).run.state is RunState.RUNNING
    written.set()
    for run in made:
        assert (await place.ended(run)).run.state is RunState.SUCCEEDED


async def test_nobody_else_sees_a_run(place: Floor) -> None:
    made = await place.run()
    caller = owner(made)
    for stranger in (a_caller(), a_caller(organization_id=caller.organization_id)):
        with pytest.raises(Exception, match="does not exist"):
            await place.runs.get(stranger, made.run.id)
    async with place.database.tenant(a_caller()) as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM scheduler.runs"))).scalar_one() == 0
