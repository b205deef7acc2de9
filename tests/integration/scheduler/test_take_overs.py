"""Taken over, but not for ever: runs that no worker brings to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.scheduler.domain.runs import MOST_LATE_TAKE_OVERS, MOST_TAKE_OVERS, Failure, Outcome, TurnState
from services.scheduler.domain.states import RunState
from services.scheduler.store.tables import runs
from services.scheduler.usecases.ports import ShownRun
from services.scheduler.usecases.worker.ports import Progress

from .working import Floor, Queue, floor, owner, states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]
WHY = Failure("TAKE_OVERS_EXHAUSTED", "its worker was lost 20 times, or could not record its end")
FAILED = Outcome(RunState.FAILED, failure=Failure("MODEL_ERROR", "because"))


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


class Refusing(Queue):
    """Takes no end that a turn came to."""

    async def record(self, steps: Sequence[Progress]) -> list[RunState | None]:
        if any(step.outcome for step in steps):
            raise ValueError("this cannot be written")
        return await super().record(steps)


async def take_overs(place: Floor, run: ShownRun) -> int:
    async with place.database.system() as connection:
        query = sa.select(runs.c.take_overs).where(runs.c.id == run.run.id)
        return int((await connection.execute(query)).scalar_one())


async def test_a_lease_that_was_given_back_does_not_count(place: Floor) -> None:
    made = await place.run()
    queue = place.queue()
    (claim,) = await queue.take("first", 1)
    await place.change(made, take_overs=MOST_TAKE_OVERS)
    for number in range(3):
        await queue.release([claim])
        (claim,) = await queue.take(f"{number}", 1)
        assert (claim.taken_over, await take_overs(place, made)) == (True, MOST_TAKE_OVERS)
    await place.change(made, take_overs=0)
    for number in (1, 2):
        await place.expire(made)
        (claim,) = await queue.take("again", 1)
        assert await take_overs(place, made) == number
    # Another attempt begins anew.
    await queue.end(claim, FAILED, timedelta())
    await queue.take("again", 1)
    assert await take_overs(place, made) == 0


async def test_an_end_that_cannot_be_recorded_is_not_tried_for_ever(place: Floor) -> None:
    made = await place.run()
    queue = Refusing(place.database, lease_life=timedelta(seconds=0.05))
    await place.worker(queue=queue)
    await place.until(made, lambda found: bool(found.attempts))
    await place.change(made, take_overs=MOST_TAKE_OVERS - 2)
    shown = await place.ended(made)
    assert (shown.run.state, shown.run.failure, states(shown)) == (RunState.FAILED, WHY, [RunState.FAILED])
    assert shown.attempts[0].failure == WHY
    assert (shown.run.result, shown.run.session_id) == ("", next(iter(place.sessions.sessions)))
    assert place.sessions.prompts == ["greet"]


async def test_the_time_of_a_run_ends_its_take_overs(place: Floor) -> None:
    made = await place.run(run_timeout=timedelta(seconds=0.5))
    queue = Refusing(place.database, lease_life=timedelta(seconds=0.05))
    await place.worker(queue=queue)
    await place.until(made, lambda found: bool(found.attempts))
    await place.change(made, take_overs=0, start_time=sa.func.clock_timestamp() - timedelta(seconds=1))
    shown = await place.ended(made)
    assert (shown.run.state, await take_overs(place, made)) == (RunState.TIMED_OUT, MOST_LATE_TAKE_OVERS + 1)


async def test_the_turn_of_a_run_that_is_given_up_is_stopped(place: Floor) -> None:
    first = await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    await place.crash(first)
    await place.change(made, take_overs=MOST_TAKE_OVERS)
    await place.expire(made)
    assert await place.queue().take("w", 1) == []
    await place.worker()
    assert (await place.ended(made)).run.failure == WHY
    (turn,) = next(iter(place.sessions.sessions.values())).turns.values()
    await turn.ended.wait()
    assert turn.now.state is TurnState.INTERRUPTED


async def test_who_holds_a_lease_is_left_alone(place: Floor) -> None:
    made = await place.run()
    queue = place.queue()
    (claim,) = await queue.take("w", 1)
    await place.change(made, take_overs=MOST_TAKE_OVERS)
    assert await queue.hopeless() == []
    assert await queue.give_up(claim.run_id, "another") is None
    await place.runs.cancel(owner(made), made.run.id, "")
    await place.expire(made)
    assert await queue.hopeless() == [claim.run_id]
    # It comes back in time.
    await queue.renew([claim])
    assert await queue.give_up(claim.run_id, "another") is None
    await place.expire(made)
    assert await queue.give_up(claim.run_id, "another") is not None
    assert (await place.read(made)).run.state is RunState.CANCELLED
