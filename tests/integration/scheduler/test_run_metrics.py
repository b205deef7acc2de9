"""What is counted of runs: attempts, ends, and how late they began."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.telemetry import registry
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings

from .working import AT_ONCE, Floor, floor, owner

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]
STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "QUEUED")


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


def counted(what: str) -> dict[str, float]:
    found = {
        state: registry.get_sample_value(f"aiagent_task_{what}_total", {"state": state}) for state in STATES
    }
    return {state: number for state, number in found.items() if number}


def more(what: str, before: dict[str, float]) -> dict[str, float]:
    now = counted(what)
    return {state: now[state] - before.get(state, 0) for state in now if now[state] != before.get(state, 0)}


def delays(name: str, **labels: str) -> float:
    return registry.get_sample_value(f"aiagent_task_run_start_delay_seconds_{name}", labels) or 0.0


async def test_attempts_are_not_runs(place: Floor) -> None:
    attempts, ended = counted("run_attempts"), counted("runs_ended")
    waiting = await place.run()
    await place.runs.cancel(owner(waiting), waiting.run.id, "")
    assert (more("run_attempts", attempts), more("runs_ended", ended)) == ({}, {"CANCELLED": 1})
    failing = await place.run(prompt_template="fail", retry_policy=replace(AT_ONCE, maximum_attempts=2))
    await place.worker()
    await place.ended(failing)
    await place.ended(await place.run())
    await place.workers.pop().drain()
    assert more("run_attempts", attempts) == {"FAILED": 2, "SUCCEEDED": 1}
    assert more("runs_ended", ended) == {"CANCELLED": 1, "FAILED": 1, "SUCCEEDED": 1}


async def test_an_end_that_is_rolled_back_is_none(place: Floor) -> None:
    made, ended = await place.run(), counted("runs_ended")
    end = endings.Ending(made.run.id, RunState.CANCELLED)
    with pytest.raises(ZeroDivisionError):
        async with place.database.system() as connection:
            assert len(await endings.end(connection, [end])) == 1
            raise ZeroDivisionError
    # Neither then, nor by what the connection serves next.
    await place.queue().hopeless()
    assert more("runs_ended", ended) == {}


async def test_how_late_a_run_begins(place: Floor) -> None:
    count, total, late = delays("count"), delays("sum"), delays("bucket", le="30.0")
    made = await place.run(prompt_template="fail")
    await place.change(made, due_time=sa.func.clock_timestamp() - timedelta(seconds=100))
    await place.worker()
    await place.ended(made)
    # Once, at the first of three attempts.
    assert (delays("count") - count, delays("bucket", le="30.0") - late) == (1, 0)
    assert 100 <= delays("sum") - total < 200
    assert delays("bucket", le="0.002") is not None
