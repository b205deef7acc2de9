"""What follows from the end of a run: it is told, and its schedule goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aiagent.events.v1.task_run_fact_pb2 import TaskRunFact
from services.kernel.db import Database
from services.kernel.identity import Caller
from services.kernel.ids import Uuid7Source, new_id
from services.kernel.testing import a_caller
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import CANCELLED, Claim, Failure, Outcome, Usage
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings
from services.scheduler.store import recording as records
from services.scheduler.store.facts import RUNS_QUEUED
from services.scheduler.store.rows import retry_policy_column
from services.scheduler.store.tables import backfills, outbox, runs, schedules
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.worker.ports import NOT_YET, Progress

from .working import Floor, floor

pytestmark = pytest.mark.integration
FIRE = datetime(2030, 1, 1, 9, tzinfo=UTC)
SUCCEEDED = Outcome(RunState.SUCCEEDED, result="done", usage=Usage(input_tokens=3), cost_usd=0.25)
POLICY = retry_policy_column(RetryPolicy())
FAILED = Outcome(RunState.FAILED, failure=Failure("MODEL_ERROR", "because"))
TIMED_OUT = Outcome(RunState.TIMED_OUT, failure=Failure("RUN_TIMEOUT", "too long"))


@dataclass
class Planned:
    """A schedule of somebody's, and the rows of its runs as a tick writes them."""

    place: Floor
    caller: Caller
    task_id: UUID
    id: UUID = field(default_factory=new_id)
    fires: int = 0

    async def run(self, state: str, connection: AsyncConnection | None = None, **values: Any) -> UUID:
        """Adds the run of its next fire, in a transaction of its own by default."""
        if connection is None:
            async with self.place.database.system() as connection:
                return await self.run(state, connection, **values)
        run_id = new_id()
        self.fires += 1
        row = {
            "id": run_id,
            "organization_id": self.caller.organization_id,
            "user_id": self.caller.user_id,
            "task_id": self.task_id,
            "schedule_id": self.id,
            "fire_time": FIRE + timedelta(minutes=self.fires),
            "due_time": FIRE,
            "available_time": sa.func.clock_timestamp(),
            "state": state,
            "priority": 0,
            "name": "a task",
            "prompt": "greet",
            "variables": {},
            "sdk_options": {},
            "labels": {},
            "run_timeout": timedelta(hours=1),
            "retry_policy": POLICY,
            "run_budget_usd": 0,
            **values,
        }
        await connection.execute(sa.insert(runs).values(row))
        return run_id

    async def backfill(self, overlap_policy: str) -> UUID:
        """Adds a backfill."""
        row = {
            "id": new_id(),
            "organization_id": self.caller.organization_id,
            "user_id": self.caller.user_id,
            "schedule_id": self.id,
            "start_time": FIRE,
            "end_time": FIRE,
            "handled_until": FIRE,
            "overlap_policy": overlap_policy,
            "state": "RUNNING",
        }
        async with self.place.database.system() as connection:
            await connection.execute(sa.insert(backfills).values(row))
        return row["id"]  # type: ignore[return-value]

    async def states(self) -> list[str]:
        """The states of its runs, in their order."""
        async with self.place.database.system() as connection:
            query = sa.select(runs.c.state).where(runs.c.task_id == self.task_id).order_by(runs.c.id)
            return list((await connection.execute(query)).scalars())

    async def row(self) -> Any:
        """Itself."""
        async with self.place.database.system() as connection:
            return (await connection.execute(sa.select(schedules).where(schedules.c.id == self.id))).one()


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with scheduler_database.system() as connection:
        await connection.execute(sa.delete(outbox))
    async with floor(scheduler_database) as made:
        yield made


async def planned(place: Floor, overlap_policy: str = "BUFFER_ALL", **values: Any) -> Planned:
    """A schedule of somebody new."""
    caller = a_caller()
    made = Planned(place, caller, await place.task(caller))
    row = {
        "id": made.id,
        "organization_id": caller.organization_id,
        "user_id": caller.user_id,
        "task_id": made.task_id,
        "name": "",
        "cron_expression": "0 9 * * *",
        "time_zone": "UTC",
        "jitter": timedelta(),
        "variables": {},
        "overlap_policy": overlap_policy,
        "catch_up_window": timedelta(minutes=1),
        "pause_on_failure": False,
        "state": "ACTIVE",
        "handled_until": FIRE,
        "next_fire_time": FIRE,
        "next_due_time": FIRE,
        **values,
    }
    async with place.database.system() as connection:
        await connection.execute(sa.insert(schedules).values(row))
    return made


async def facts(place: Floor) -> list[TaskRunFact]:
    """What was told, in its order."""
    async with place.database.system() as connection:
        rows = (await connection.execute(sa.select(outbox).order_by(outbox.c.id))).all()
    found = [TaskRunFact.FromString(bytes(row.payload)) for row in rows]
    for row, fact in zip(rows, found, strict=True):
        key = fact.run_ended.task_run_id if fact.HasField("run_ended") else fact.organization_id
        assert (row.topic, row.key, str(row.id)) == ("runs", key, fact.event_id)
    return found


async def queued(place: Floor) -> list[tuple[UUID, int]]:
    """For whom workers were told of runs, and of how many."""
    found = [fact for fact in await facts(place) if fact.HasField("runs_queued")]
    return [(UUID(fact.organization_id), fact.runs_queued.run_count) for fact in found]


async def ends(place: Floor) -> list[TaskRunFact]:
    """What was told of ends."""
    return [fact for fact in await facts(place) if fact.HasField("run_ended")]


async def claims(place: Floor, number: int) -> list[Claim]:
    """Takes what there is, which must be so many."""
    found = await place.queue().take("w", 50)
    assert len(found) == number
    return found


async def test_an_end_is_told_once_with_what_the_run_has_used(place: Floor) -> None:
    shown = await place.run()
    (claim,) = await claims(place, 1)
    session_id = uuid4()
    await place.queue().tell(claim, session_id=session_id, turn_id=uuid4(), outcome=SUCCEEDED)
    (fact,) = await ends(place)
    ended = fact.run_ended
    assert (fact.organization_id, ended.task_run_id, ended.task_id, ended.user_id) == tuple(
        str(getattr(shown.run, name)) for name in ("organization_id", "id", "task_id", "user_id")
    )
    assert (ended.state, ended.attempt_count, ended.session_id, ended.schedule_id) == (
        "SUCCEEDED",
        1,
        str(session_id),
        "",
    )
    assert (ended.usage.input_tokens, ended.cost_usd, ended.HasField("failure")) == (3, 0.25, False)
    run = (await place.read(shown)).run
    assert (ended.start_time.ToDatetime(UTC), ended.end_time.ToDatetime(UTC)) == (
        run.start_time,
        run.end_time,
    )


async def test_a_retry_is_no_end_and_workers_are_told(place: Floor) -> None:
    await place.run()
    (claim,) = await claims(place, 1)
    before = await queued(place)
    await place.queue().end(claim, FAILED, timedelta(seconds=30))
    assert await ends(place) == []
    assert await queued(place) == [*before, (claim.organization_id, 1)]


async def test_workers_are_told_of_leases_that_are_given_back(place: Floor) -> None:
    caller = a_caller()
    made = [await place.run(caller), await place.run(caller), await place.run(), await place.run()]
    found = {claim.run_id: claim for claim in await claims(place, 4)}
    await place.expire(made[3])
    assert len(await place.queue().take("another", 1)) == 1
    before, woken = await queued(place), asyncio.Event()
    place.database.on_commit(RUNS_QUEUED, woken.set)
    await place.queue().release(list(found.values()))
    assert woken.is_set()
    told = (await queued(place))[len(before) :]
    assert sorted(told) == sorted([(caller.organization_id, 2), (made[2].run.organization_id, 1)])
    assert len(await place.queue().take("w", 5)) == 3


async def test_many_ends_go_together(place: Floor) -> None:
    made = [await place.run() for _ in range(3)]
    found = await claims(place, 3)
    steps = [(SUCCEEDED, None), (FAILED, timedelta()), (CANCELLED, None)]
    states = await place.queue().record(
        [Progress(claim, outcome=o, pause=p) for claim, (o, p) in zip(found, steps, strict=True)]
    )
    assert states == [RunState.SUCCEEDED, RunState.QUEUED, RunState.CANCELLED]
    by_id = {run.run.id: (await place.read(run)).run for run in made}
    assert [by_id[claim.run_id].state for claim in found] == states
    assert [by_id[claim.run_id].result for claim in found] == ["done", "", ""]
    assert len(await ends(place)) == 2


@pytest.mark.parametrize("policy", ["BUFFER_ONE", "BUFFER_ALL", "CANCEL_OTHER"])
async def test_the_next_starts_when_one_is_over(place: Floor, policy: str) -> None:
    schedule = await planned(place, policy)
    await schedule.run("QUEUED")
    for _ in range(2):
        await schedule.run("PENDING")
    woken = asyncio.Event()
    place.database.on_commit(RUNS_QUEUED, woken.set)
    (claim,) = await claims(place, 1)
    await place.queue().end(claim, SUCCEEDED, None)
    assert woken.is_set()
    assert await schedule.states() == ["SUCCEEDED", "QUEUED", "PENDING"]
    assert await queued(place) == [(schedule.caller.organization_id, 1)]
    (claim,) = await claims(place, 1)
    await place.queue().end(claim, FAILED, None)
    assert await schedule.states() == ["SUCCEEDED", "FAILED", "QUEUED"]


async def test_a_backfill_has_a_policy_of_its_own(place: Floor) -> None:
    schedule = await planned(place)
    backfill = await schedule.backfill("ALLOW_ALL")
    await schedule.run("QUEUED")
    (claim,) = await claims(place, 1)
    for changes in ({}, {"backfill_id": backfill}, {}):
        await schedule.run("PENDING", **changes)
    await place.queue().end(claim, SUCCEEDED, None)
    assert await schedule.states() == ["SUCCEEDED", "QUEUED", "QUEUED", "PENDING"]


@pytest.mark.parametrize(("outcome", "reason"), [(FAILED, "MODEL_ERROR"), (TIMED_OUT, "RUN_TIMEOUT")])
async def test_a_schedule_pauses_that_says_so(place: Floor, outcome: Outcome, reason: str) -> None:
    schedule, other = await planned(place, pause_on_failure=True), await planned(place)
    for each in (schedule, other):
        await each.run("QUEUED")
        (claim,) = await claims(place, 1)
        await place.queue().end(claim, outcome, None)
    row = await schedule.row()
    assert (row.state, row.next_fire_time, row.next_due_time, row.version) == ("PAUSED", None, None, 2)
    assert reason in row.note
    row = await other.row()
    assert (row.state, row.version) == ("ACTIVE", 1)


@pytest.mark.parametrize(
    ("outcome", "pause", "state"),
    [(SUCCEEDED, None, "ACTIVE"), (CANCELLED, None, "ACTIVE"), (FAILED, timedelta(), "ACTIVE")],
)
async def test_nothing_else_pauses_it(
    place: Floor, outcome: Outcome, pause: timedelta | None, state: str
) -> None:
    schedule = await planned(place, pause_on_failure=True)
    await schedule.run("QUEUED")
    (claim,) = await claims(place, 1)
    await place.queue().end(claim, outcome, pause)
    assert (await schedule.row()).state == state


async def test_a_schedule_that_has_ended_stays_so(place: Floor) -> None:
    schedule = await planned(
        place, pause_on_failure=True, state="ENDED", next_fire_time=None, next_due_time=None
    )
    await schedule.run("QUEUED")
    (claim,) = await claims(place, 1)
    await place.queue().end(claim, FAILED, None)
    assert (await schedule.row()).state == "ENDED"


async def test_an_end_waits_for_whoever_has_the_schedule(place: Floor) -> None:
    """A tick that holds a run back behind one that is ending commits first: the end sees what it has written."""
    schedule = await planned(place)
    await schedule.run("QUEUED")
    (claim,) = await claims(place, 1)
    step = Progress(claim, outcome=SUCCEEDED)
    async with place.database.system() as connection:
        await connection.execute(
            sa.select(schedules.c.id).where(schedules.c.id == schedule.id).with_for_update()
        )
        assert await place.queue().record([step]) == [NOT_YET]
        await schedule.run("PENDING", connection)
    assert await place.queue().record([step]) == [RunState.SUCCEEDED]
    assert await schedule.states() == ["SUCCEEDED", "QUEUED"]


async def test_a_cancel_of_what_waits_lets_the_next_start(place: Floor) -> None:
    schedule = await planned(place)
    first = await schedule.run("QUEUED")
    await schedule.run("PENDING")
    shown = await place.runs.cancel(schedule.caller, first, "")
    assert (shown.run.state, shown.run.cancel_requested) == (RunState.CANCELLED, True)
    assert await schedule.states() == ["CANCELLED", "QUEUED"]
    ended, _ = await facts(place)
    assert (ended.run_ended.task_run_id, ended.run_ended.state) == (str(first), "CANCELLED")
    assert await queued(place) == [(schedule.caller.organization_id, 1)]


async def test_deleting_a_task_ends_what_waits_and_starts_nothing(place: Floor) -> None:
    schedule = await planned(place)
    for state in ("QUEUED", "QUEUED", "PENDING"):
        await schedule.run(state)
    (under_way,) = await place.queue().take("w", 1)
    await place.tasks.delete(schedule.caller, schedule.task_id, "", "")
    assert await schedule.states() == ["RUNNING", "CANCELLED", "CANCELLED"]
    assert [fact.run_ended.schedule_id for fact in await facts(place)] == [str(schedule.id)] * 2
    assert (await place.queue().renew([under_way])).cancelled == {under_way.run_id}
    assert await place.queue().end(under_way, CANCELLED, None) is RunState.CANCELLED


async def test_deleting_a_schedule_ends_what_it_holds_back_alone(place: Floor) -> None:
    schedule = await planned(place)
    for state in ("QUEUED", "QUEUED", "PENDING"):
        await schedule.run(state)
    (under_way,) = await place.queue().take("w", 1)
    use_cases = Schedules(TenantStore(place.database), Uuid7Source(), place.renderer)
    await use_cases.delete(schedule.caller, schedule.id, "", "")
    assert await schedule.states() == ["RUNNING", "QUEUED", "CANCELLED"]
    (fact,) = await facts(place)
    assert (fact.run_ended.state, fact.run_ended.schedule_id) == ("CANCELLED", str(schedule.id))
    assert (await place.queue().renew([under_way])).cancelled == frozenset()


async def test_a_later_fire_takes_the_place_of_what_is_held_back_alone(place: Floor) -> None:
    schedule = await planned(place)
    made = [await schedule.run(state) for state in ("PENDING", "QUEUED", "PENDING")]
    over = await schedule.run("CANCELLED", end_time=FIRE)
    async with place.database.system() as connection:
        await connection.execute(
            sa.select(schedules.c.id).where(schedules.c.id == schedule.id).with_for_update()
        )
        assert await endings.supersede(connection, [*made[:2], over]) == {made[0]}
        assert await endings.supersede(connection, [made[0]]) == set()
        assert await endings.supersede(connection, []) == set()
    assert await schedule.states() == ["SKIPPED", "QUEUED", "PENDING", "CANCELLED"]
    async with place.database.system() as connection:
        query = sa.select(runs.c.id, runs.c.skip_reason, runs.c.version).where(
            runs.c.task_id == schedule.task_id
        )
        rows = {row.id: (row.skip_reason, row.version) for row in await connection.execute(query)}
    assert (rows[made[0]], rows[over]) == (("SUPERSEDED", 2), (None, 1))
    assert await facts(place) == []


async def test_what_is_held_back_behind_nothing_is_found(place: Floor) -> None:
    alone, behind, many = await planned(place), await planned(place), await planned(place, "ALLOW_ALL")
    await alone.run("PENDING")
    await alone.run("PENDING")
    await behind.run("QUEUED", available_time=FIRE)
    await behind.run("PENDING")
    for _ in range(3):
        await many.run("PENDING")
    assert await place.queue().promote_forgotten() == 4
    assert await alone.states() == ["QUEUED", "PENDING"]
    assert await behind.states() == ["QUEUED", "PENDING"]
    assert await many.states() == ["QUEUED"] * 3
    assert await place.queue().promote_forgotten() == 0
    # A worker does so by itself.
    async with place.database.system() as connection:
        await connection.execute(sa.update(runs).values(state="PENDING").where(runs.c.state == "QUEUED"))
    await place.worker(10)
    async with asyncio.timeout(10):
        while set(await alone.states()) != {"SUCCEEDED"}:
            await asyncio.sleep(0.01)


async def test_two_that_write_to_the_same_runs_do_not_wait_for_each_other(place: Floor) -> None:
    for _ in range(5):
        await place.run()
    steps = [Progress(claim, session_id=uuid4()) for claim in await claims(place, 5)]
    async with place.database.relay_system() as connection:
        assert await records.record(connection, steps[:3]) == [RunState.RUNNING] * 3
        states = await place.queue().record(steps[::-1])
        assert states == [RunState.RUNNING] * 2 + [NOT_YET] * 3
    assert await place.queue().record(steps) == [RunState.RUNNING] * 5


async def test_every_change_raises_the_version(place: Floor) -> None:
    shown = await place.run()

    async def version() -> int:
        async with place.database.system() as connection:
            query = sa.select(runs.c.version).where(runs.c.id == shown.run.id)
            return int((await connection.execute(query)).scalar_one())

    seen = [await version()]

    async def raised() -> bool:
        seen.append(await version())
        return seen[-1] > seen[-2]

    queue = place.queue()
    (claim,) = await queue.take("w", 1)
    assert await raised()
    caller = a_caller(user_id=shown.run.user_id, organization_id=shown.run.organization_id)
    await place.runs.cancel(caller, shown.run.id, "")
    assert await raised()
    await place.change(shown, cancel_time=None)
    await queue.tell(claim, session_id=uuid4())
    assert await raised()
    await queue.renew([claim])
    assert not await raised()
    await place.expire(shown)
    (claim,) = await queue.take("other", 1)
    assert await raised()
    await queue.release([claim])
    assert not await raised()
    (claim,) = await queue.take("a third", 1)
    assert await raised()
    await queue.end(claim, FAILED, timedelta())
    assert await raised()
    await place.runs.cancel(caller, shown.run.id, "")
    assert await raised()
