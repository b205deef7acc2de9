"""The table of a run's moves is what the statements do: nothing beside it, and all that is in it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError

from services.kernel.db import Database
from services.scheduler.domain.entities import TaskVariable
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.runs import CANCELLED, Failure, Outcome
from services.scheduler.domain.schedules import Schedule
from services.scheduler.domain.states import RunState
from services.scheduler.domain.variables import VariableType
from tests.databases import Copy

from .run_moves import MOVES, moves_seen
from .ticking import MINUTE, Clockwork, clockwork
from .ticking import owner as owner_of
from .working import Floor, floor, owner

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]
FAILED = Outcome(RunState.FAILED, failure=Failure("MODEL_ERROR", "because"))
TIMED_OUT = Outcome(RunState.TIMED_OUT, failure=Failure("RUN_TIMEOUT", "too long"))
SUCCEEDED = Outcome(RunState.SUCCEEDED)


async def carried(place: Floor) -> None:
    """Runs of a task, as workers and their owner end them."""
    queue = place.queue()
    for outcome in (SUCCEEDED, FAILED, CANCELLED, TIMED_OUT):
        await place.run()
        (claim,) = await queue.take("w", 1)
        if outcome is FAILED:
            assert await queue.end(claim, FAILED, timedelta()) is RunState.QUEUED
            (claim,) = await queue.take("w", 1)
        await queue.end(claim, outcome, None)
    waiting = await place.run()
    await place.runs.cancel(owner(waiting), waiting.run.id, "")


async def fire_again(works: Clockwork, schedule: Schedule, by: timedelta = MINUTE) -> None:
    """Has a schedule fire once more, beside the runs that it has made."""
    for run in await works.runs(schedule):
        await works.change_run(run.id, fire_time=run.fire_time - timedelta(hours=1))
    await works.rewind(schedule, by)
    await works.tick()


async def fired(place: Floor, works: Clockwork) -> None:
    """Runs of schedules, which give way to each other."""
    queue = place.queue()
    held = await works.due(3 * MINUTE, overlap_policy=OverlapPolicy.BUFFER_ALL)
    await works.tick()
    assert await works.states(held) == ["QUEUED", "PENDING", "PENDING"]
    (claim,) = await queue.take("w", 5)
    await queue.end(claim, SUCCEEDED, None)
    await works.schedules.delete(owner_of(held), held.id, "", "")
    await queue.end((await queue.take("w", 5))[0], SUCCEEDED, None)

    last = await works.due(3 * MINUTE, overlap_policy=OverlapPolicy.CANCEL_OTHER)
    await works.tick()
    assert await works.states(last) == ["CANCELLED", "CANCELLED", "QUEUED"]
    await queue.take("w", 5)
    await fire_again(works, last, 2 * MINUTE)
    assert (await works.states(last))[2:] == ["RUNNING", "SKIPPED", "PENDING"]
    await fire_again(works, last)
    assert (await works.states(last))[4:] == ["SKIPPED", "PENDING"]
    who = TaskVariable("who", VariableType.STRING, required=True)
    await works.retask(last, prompt_template="{{ who }}", variables=(who,))
    await works.prompts().render_some()
    await fire_again(works, last)
    assert (await works.states(last))[-1] == "FAILED"


async def test_every_move_of_the_table_is_made(scheduler_database: Database, databases: Copy) -> None:
    async with floor(scheduler_database) as place, clockwork(scheduler_database) as works:
        await carried(place)
        await fired(place, works)
    assert await moves_seen(databases) == MOVES


async def test_no_other_is_let_pass(scheduler_database: Database) -> None:
    async with floor(scheduler_database) as place:
        made = await place.run()
        with pytest.raises(DBAPIError, match='a run may not go from "QUEUED" to SUCCEEDED'):
            await place.change(made, state="SUCCEEDED", end_time=made.run.create_time)
