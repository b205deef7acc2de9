"""Which worker gets which run, and what a worker may write that has lost one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.testing import a_caller
from services.scheduler.domain.runs import CANCELLED, UNREADABLE, Failure, LeaseLost, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store import claims
from services.scheduler.store.rows import retry_policy_column
from services.scheduler.store.tables import runs

from .working import AT_ONCE, Floor, floor

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]
FAILED = Outcome(RunState.FAILED, failure=Failure("MODEL_ERROR", "because"))


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


async def many(place: Floor, number: int, **changes: object) -> list[str]:
    """Runs of one task of somebody new; returns their ids, the oldest first."""
    caller = a_caller()
    task_id = await place.task(caller, **changes)
    return [str((await place.run(caller, task_id)).run.id) for _ in range(number)]


async def test_each_run_goes_to_one_worker(place: Floor) -> None:
    made = [run for _ in range(3) for run in await many(place, 10)]
    found = await asyncio.gather(*(place.queue().take(str(uuid4()), 4) for _ in range(8)))
    claimed = [str(claim.run_id) for claims in found for claim in claims]
    assert sorted(claimed) == sorted(made)
    assert [len(claims) for claims in found].count(4) == 7


async def test_priority_goes_before_age(place: Floor) -> None:
    (low,), (high,), (middle,) = [await many(place, 1, priority=number) for number in (-1, 5, 0)]
    order = [str((await place.queue().take("w", 1))[0].run_id) for _ in range(3)]
    assert order == [high, middle, low]


async def test_equals_share_the_places(place: Floor) -> None:
    crowd, few, one = await many(place, 20), await many(place, 3), await many(place, 1)
    # The first four places, then four more: what is under way counts.
    for shares in ((2, 1, 1), (2, 2, 0)):
        claimed = [str(claim.run_id) for claim in await place.queue().take("w", 4)]
        assert tuple(len(set(claimed) & set(group)) for group in (crowd, few, one)) == shares
        assert [run for run in claimed if run in crowd] == crowd[:2] or shares == (2, 2, 0)


async def test_what_is_under_way_counts(place: Floor) -> None:
    await many(place, 8)
    await place.queue().take("w", 4)
    late = await many(place, 3)
    assert {str(claim.run_id) for claim in await place.queue().take("w", 3)} == set(late)


async def test_a_task_has_no_more_runs_than_it_says(place: Floor) -> None:
    await many(place, 5, max_concurrent_runs=2)
    found = await asyncio.gather(*(place.queue().take(str(uuid4()), 3) for _ in range(4)))
    claims = [claim for claims in found for claim in claims]
    assert len(claims) == 2
    await place.queue().end(claims[0], CANCELLED, None)
    assert len(await place.queue().take("w", 5)) == 1


async def test_a_user_has_no_more_runs_than_one_may(place: Floor) -> None:
    busy, other = a_caller(), a_caller()
    limited = await place.task(busy, max_concurrent_runs=1)
    others = [await place.task(busy) for _ in range(3)]
    first, *_ = [await place.run(busy, task_id) for task_id in (limited, limited, *others)]
    await place.run(other)
    found = await asyncio.gather(*(place.queue(per_user=2).take(str(uuid4()), 5) for _ in range(4)))
    claims = [claim for claims in found for claim in claims]
    # What the task's own limit keeps back takes nobody's place.
    claims += await place.queue(per_user=2).take("w", 5)
    of = {claim.run_id: claim for claim in claims if claim.user_id == busy.user_id}
    assert (len(of), len(claims)) == (2, 3)
    await place.queue().end(of[first.run.id], CANCELLED, None)
    assert len(await place.queue(per_user=2).take("w", 5)) == 1
    assert len(await place.queue().take("w", 5)) == 2


async def test_who_has_all_that_one_may_keeps_no_colleague_out(place: Floor) -> None:
    busy = a_caller()
    task_id = await place.task(busy)
    for _ in range(4):
        await place.run(busy, task_id)
    colleague = await place.run(a_caller(organization_id=busy.organization_id))
    found = [await place.queue(per_user=1).take("w", 1) for _ in range(3)]
    assert [len(claims) for claims in found] == [1, 1, 0]
    assert found[1][0].run_id == colleague.run.id


async def test_who_finds_nothing_is_told_when_to_come_again(place: Floor) -> None:
    assert (await place.queue().claim("w", 1)).next_seconds is None
    await many(place, 3, max_concurrent_runs=1)
    assert len(await place.queue().take("w", 5)) == 1
    # No time brings those that wait for a place.
    assert (await place.queue().claim("w", 1)).next_seconds is None
    for seconds in (50, 30):
        await place.change(
            await place.run(), available_time=sa.func.clock_timestamp() + timedelta(seconds=seconds)
        )
    found = (await place.queue().claim("w", 1)).next_seconds
    assert found is not None and 20 < found <= 30


async def test_a_pause_is_kept(place: Floor) -> None:
    run = await place.run()
    (claim,) = await place.queue().take("w", 1)
    assert await place.queue().end(claim, FAILED, timedelta(seconds=30)) is RunState.QUEUED
    assert await place.queue().take("w", 1) == []
    await place.change(run, available_time=sa.func.clock_timestamp())
    (again,) = await place.queue().take("w", 1)
    assert (again.attempt, again.taken_over) == (2, False)


async def test_no_attempt_follows_that_would_begin_too_late(place: Floor) -> None:
    run = await place.run(run_timeout=timedelta(seconds=20))
    (claim,) = await place.queue().take("w", 1)
    assert await place.queue().end(claim, FAILED, timedelta(seconds=30)) is RunState.FAILED
    assert (await place.read(run)).run.failure == FAILED.failure


async def test_a_live_lease_is_nobody_elses(place: Floor) -> None:
    run = await place.run()
    (claim,) = await place.queue().take("first", 1)
    assert await place.queue().take("second", 1) == []
    await place.expire(run)
    # What was only late is kept.
    assert (await place.queue().renew([claim])).lost == frozenset()
    assert await place.queue().take("second", 1) == []


async def test_a_claim_that_stands_still_is_ended(place: Floor) -> None:
    await place.run()
    with pytest.raises(ServiceError) as refused:
        async with place.database.relay_system() as connection:
            found, _ = await claims.claim(connection, "frozen", 1, most_idle=timedelta(milliseconds=300))
            assert len(found.runs) == 1
            # It waits for the other, and has what that one had.
            async with asyncio.timeout(2):
                (claim,) = await place.queue().take("alive", 1)
    assert (refused.value.kind, claim.epoch) == (ErrorKind.UNAVAILABLE, 1)
    await place.queue().end(claim, CANCELLED, None)
    # Nothing of it stays with the connections.
    async with place.database.relay_system() as connection:
        assert (await connection.execute(sa.text("SHOW lock_timeout"))).scalar_one() == "5s"
        assert (await claims.claim(connection, "frozen", 1))[0].runs == []


async def test_a_claim_that_stands_still_keeps_nobody_from_taking_over(place: Floor) -> None:
    run = await place.run()
    await place.queue().take("dead", 1)
    async with place.database.relay_system() as connection:
        assert (await claims.claim(connection, "frozen", 1))[0].runs == []
        await place.expire(run)
        async with asyncio.timeout(0.9):
            (claim,) = await place.queue().take("alive", 4)
        assert claim.taken_over


async def test_what_cannot_be_read_ends_and_stops_no_other(place: Floor) -> None:
    made = [await place.run() for _ in range(4)]
    await place.queue().take("dead", 2)
    for run in made[::2]:
        await place.change(run, retry_policy={})
    await place.expire(made[0])
    await place.worker(1, look_seconds=60)
    assert (await place.ended(made[3])).run.state is RunState.SUCCEEDED
    await place.expire(made[1])
    place.wake()
    assert (await place.ended(made[1])).run.state is RunState.SUCCEEDED
    for run in made[::2]:
        await place.change(run, retry_policy=retry_policy_column(AT_ONCE))
        found = await place.read(run)
        assert (found.run.state, found.run.failure) == (RunState.FAILED, UNREADABLE.failure)
        assert [attempt.failure for attempt in found.attempts] == [UNREADABLE.failure]


@pytest.mark.parametrize("changes", [{}, {"max_concurrent_runs": 1}])
@pytest.mark.parametrize("mine", [True, False])
async def test_what_is_locked_keeps_no_place(place: Floor, changes: dict[str, int], mine: bool) -> None:
    """Neither of others nor, where there is nothing else, of its own task."""
    first, *rest = await many(place, 1 + 2 * mine, **changes)
    rest += [] if mine else await many(place, 1)
    async with place.database.relay_system() as connection:
        await connection.execute(sa.select(runs.c.id).where(runs.c.id == UUID(first)).with_for_update())
        (claim,) = await place.queue(per_user=1).take("w", 1)
        assert str(claim.run_id) == rest[0]
    assert len(await place.queue(per_user=1).take("w", 5)) == (0 if mine else 1)


@pytest.mark.parametrize("successor", ["second", "first"])
async def test_who_has_lost_a_run_writes_nothing(place: Floor, successor: str) -> None:
    run = await place.run()
    queue = place.queue()
    (first,) = await queue.take("first", 1)
    await place.expire(run)
    (second,) = await queue.take(successor, 1)
    assert (second.attempt, second.epoch, second.taken_over) == (first.attempt, first.epoch + 1, True)
    before = await place.read(run)
    for late in (
        queue.tell(first, session_id=uuid4()),
        queue.tell(first, turn_id=uuid4()),
        queue.end(first, Outcome(RunState.SUCCEEDED, result="late"), None),
        queue.end(first, FAILED, timedelta()),
    ):
        with pytest.raises(LeaseLost):
            await late
    await queue.release([first])
    assert (await queue.renew([first])).lost == {first.run_id}
    assert await place.read(run) == before
    assert await queue.take("third", 1) == []
    await queue.end(second, Outcome(RunState.SUCCEEDED, result="in time"), None)
    assert (await place.read(run)).run.result == "in time"


async def test_a_holder_hears_of_a_cancel_and_a_retry_becomes_one(place: Floor) -> None:
    run = await place.run()
    (claim,) = await place.queue().take("w", 1)
    assert (await place.queue().renew([claim])).cancelled == frozenset()
    await place.runs.cancel(
        a_caller(user_id=claim.user_id, organization_id=claim.organization_id), claim.run_id, ""
    )
    assert (await place.queue().renew([claim])).cancelled == {claim.run_id}
    assert await place.queue().end(claim, FAILED, timedelta()) is RunState.CANCELLED
    assert (await place.read(run)).run.state is RunState.CANCELLED


async def test_the_next_attempt_knows_what_was_spent(place: Floor) -> None:
    await place.run()
    (claim,) = await place.queue().take("w", 1)
    await place.queue().end(
        claim, Outcome(RunState.FAILED, failure=FAILED.failure, cost_usd=0.25), timedelta()
    )
    (again,) = await place.queue().take("w", 1)
    assert again.spent_usd == 0.25
    assert claim.request_id("session") != again.request_id("session")


async def test_the_many_runs_of_a_deleted_task_end_a_bounded_number_at_once(place: Floor) -> None:
    caller = a_caller()
    made = await place.run(caller)
    names = ", ".join(f'"{column.name}"' for column in runs.c if column.name != "id")
    async with place.database.system() as connection:
        await connection.execute(
            sa.text(
                f"INSERT INTO scheduler.runs (id, {names})"
                f" SELECT gen_random_uuid(), {names} FROM scheduler.runs, generate_series(1, 1199) WHERE id = :id"
            ),
            {"id": made.run.id},
        )
    await place.tasks.delete(caller, made.run.task_id, "", "")

    async def waiting() -> int:
        async with place.database.system() as connection:
            query = sa.select(sa.func.count()).where(runs.c.state == "QUEUED")
            return int((await connection.execute(query)).scalar_one())

    assert await waiting() == 700
    assert await place.queue().take("w", 10) == [], "no worker takes what is left"
    # A worker's looks end the rest, without waiting for the next one.
    worker = await place.worker(look_seconds=0.5)
    async with asyncio.timeout(10):
        while await waiting():
            await asyncio.sleep(0.01)
    assert worker.under_way == 0
