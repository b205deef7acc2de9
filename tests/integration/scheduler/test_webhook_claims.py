"""Claims of deliveries beside processes that are frozen with what they hold: nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.errors import ServiceError
from services.kernel.testing import a_caller
from services.scheduler.domain.webhooks import LONGEST_WAIT
from services.scheduler.store import webhook_claims
from services.scheduler.store.system_queries import WebhookQueries
from services.scheduler.store.tables import runs
from services.scheduler.store.tenant import TenantStore
from services.scheduler.store.webhook_tables import webhook_deliveries
from services.scheduler.usecases.tasks import UpdateTask
from services.scheduler.usecases.webhooks.ports import Answer, DeliveryClaim

from .receiver import receiving
from .sending import Hall
from .working import floor

pytestmark = pytest.mark.integration

SHORTLY = timedelta(milliseconds=100)


def held(*run_ids: UUID) -> sa.Select[tuple[UUID]]:
    """Locks the deliveries of runs."""
    return (
        sa.select(webhook_deliveries.c.id).where(webhook_deliveries.c.run_id.in_(run_ids)).with_for_update()
    )


async def somebody_waits(database: Database) -> None:
    """Returns when a transaction waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(5):
        while True:
            async with database.dedicated_system() as connection:
                if (await connection.execute(sa.text(query))).scalar_one():
                    return
            await asyncio.sleep(0.01)


@pytest.fixture
async def hall(scheduler_database: Database) -> AsyncIterator[Hall]:
    async with floor(scheduler_database) as made, receiving() as receiver:
        it = Hall(made, receiver)
        yield it
        for sender in it.senders:
            await sender.drain()


async def test_a_sender_that_is_frozen_in_its_claim_stops_no_other(hall: Hall) -> None:
    run_id = await hall.ended()
    with pytest.raises(ServiceError) as caught:
        async with hall.floor.database.system() as connection:
            (claim,) = await webhook_claims.claim(connection, "frozen", 1, silence=SHORTLY)
            async with asyncio.timeout(5):
                # The other one waits for it, for a little longer than it may be silent.
                (taken,) = await WebhookQueries(hall.floor.database).claim("other", 1)
            assert taken.delivery_id == claim.delivery_id
    # It goes on, and learns that it has claimed nothing.
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    (row,) = await hall.deliveries(run_id)
    assert (row["lease_holder"], row["attempt_count"]) == ("other", 1)
    # On another connection.
    assert await WebhookQueries(hall.floor.database).claim("frozen", 1) == []


async def test_who_waits_for_the_lock_of_all_senders_gives_up_soon(hall: Hall) -> None:
    await hall.ended()
    async with hall.floor.database.dedicated_system() as connection:
        await webhook_claims.claim(connection, "slow", 1, silence=timedelta(minutes=1))
        with pytest.raises(ServiceError) as caught:
            async with asyncio.timeout(2):
                await WebhookQueries(hall.floor.database, silence=SHORTLY).claim("other", 1)
        assert caught.value.reason == "DATABASE_BUSY"


async def test_what_is_ended_first_waits_for_nobody(hall: Hall) -> None:
    lost = await hall.ended()
    await WebhookQueries(hall.floor.database).claim("dead", 1)
    long_ago = sa.func.clock_timestamp() - timedelta(seconds=1)
    await hall.change(lost, next_attempt_time=long_ago, give_up_time=long_ago)
    caller = a_caller()
    task_id, unwanted = await hall.told(caller)
    await hall.floor.tasks.update(caller, UpdateTask(task_id, {"webhook": None}, "", ""))
    async with hall.floor.database.dedicated_system() as connection:
        await connection.execute(held(unwanted, lost))
        run_id = await hall.ended()
        await hall.sender()
        await hall.until(run_id, "SUCCEEDED")
    await hall.until(unwanted, "CANCELLED")
    await hall.until(lost, "FAILED")


async def test_a_process_that_is_frozen_while_it_ends_some_is_ended_too(hall: Hall) -> None:
    caller = a_caller()
    task_id, run_id = await hall.told(caller)
    await hall.floor.tasks.update(caller, UpdateTask(task_id, {"webhook": None}, "", ""))
    with pytest.raises(ServiceError):
        async with hall.floor.database.system() as connection:
            await webhook_claims.end_hopeless(connection, silence=SHORTLY)
            await hall.sender()
            await hall.until(run_id, "CANCELLED")


async def test_a_delivery_that_somebody_holds_keeps_no_other_waiting(hall: Hall) -> None:
    queue, caller = WebhookQueries(hall.floor.database), a_caller()
    task_id, first = await hall.told(caller)
    others = [await hall.ended() for _ in range(2)]
    run = await hall.floor.run(caller, task_id)
    await hall.floor.runs.cancel(caller, run.run.id, "")
    async with hall.floor.database.dedicated_system() as connection:
        await connection.execute(held(first))
        # The place that the first one would have here, and those that are left at the receiver.
        for run_id in (*others, run.run.id):
            (claim,) = await queue.claim("a", 1)
            assert claim.delivery_id == (await hall.deliveries(run_id))[0]["id"]
    # The receiver has no place left.
    assert await queue.claim("a", 5) == []


async def test_more_than_may_be_sent_is_looked_at_and_not_taken(hall: Hall) -> None:
    run_ids = [await hall.ended() for _ in range(6)]
    queue = WebhookQueries(hall.floor.database)
    async with hall.floor.database.dedicated_system() as connection:
        await connection.execute(held(*run_ids[:2]))
        taken = {claim.delivery_id for claim in await queue.claim("a", 8)}
    assert taken == {(await hall.deliveries(run_id))[0]["id"] for run_id in run_ids[2:5]}
    assert await queue.claim("b", 8) == []


async def test_a_run_is_not_removed_between_the_locks_of_its_redelivery(hall: Hall) -> None:
    caller = a_caller()
    run_id = await hall.ended(caller)
    (delivery,) = await hall.deliveries(run_id)

    async def remove() -> None:
        async with hall.floor.database.system() as connection:
            await connection.execute(sa.delete(runs).where(runs.c.id == run_id))

    async with TenantStore(hall.floor.database).begin(caller) as transaction:
        await transaction.get_delivery(delivery["id"], lock=True)
        removal = asyncio.create_task(remove())
        await somebody_waits(hall.floor.database)
        await transaction.redeliver(delivery["id"], uuid4())
    await removal
    assert await hall.deliveries(run_id) == []


async def test_what_nobody_came_to_for_a_day_is_given_up(hall: Hall) -> None:
    queue = WebhookQueries(hall.floor.database)
    again = await hall.ended()
    (claim,) = await queue.claim("a", 1)
    await queue.finish(claim, Answer(status=500, error="REFUSED"), timedelta())
    never, later = await hall.ended(), await hall.ended()
    since = sa.func.clock_timestamp() - LONGEST_WAIT
    await hall.change(again, next_attempt_time=since)
    await hall.change(never, next_attempt_time=since)
    await hall.change(later, next_attempt_time=since + timedelta(minutes=1))
    (taken,) = await queue.claim("b", 3)
    assert taken.delivery_id == (await hall.deliveries(later))[0]["id"]
    for run_id, errors in ((never, ["NOT_SENT"]), (again, ["REFUSED", "NOT_SENT"])):
        (row,) = await hall.deliveries(run_id)
        assert (row["state"], row["attempt_count"]) == ("FAILED", len(errors))
        assert [one.error for one in await hall.attempts(row["id"])] == errors


class _Late(WebhookQueries):
    """Commits claims, and never tells what was claimed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.claimed = asyncio.Event()

    async def claim(self, holder: str, limit: int) -> list[DeliveryClaim]:
        if await super().claim(holder, limit):
            self.claimed.set()
            await asyncio.Event().wait()
        return []


async def test_what_was_claimed_while_the_sender_drains_is_given_back(hall: Hall) -> None:
    run_id = await hall.ended()
    queue = _Late(hall.floor.database)
    sender = await hall.sender(queue=queue)
    async with asyncio.timeout(5):
        await queue.claimed.wait()
    await sender.drain()
    assert hall.receiver.requests == []
    await hall.sender()
    await hall.until(run_id, "SUCCEEDED")


async def test_who_gives_back_waits_for_a_claim_whose_commit_is_on_its_way(hall: Hall) -> None:
    run_id = await hall.ended()
    async with hall.floor.database.system() as connection:
        await webhook_claims.claim(connection, "one", 1, silence=timedelta(minutes=1))
        giving = asyncio.create_task(WebhookQueries(hall.floor.database).release("one"))
        await somebody_waits(hall.floor.database)
    await giving
    (row,) = await hall.deliveries(run_id)
    assert (row["state"], row["lease_holder"]) == ("PENDING", None)
