"""How a driver leaves an attempt: with its end acknowledged, or, when the log has lost a part of it, stopped."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.kernel.clock import SystemClock
from services.kernel.errors import unavailable
from services.session.store import tables
from services.session.store.fenced import FencedConnection
from services.session.usecases.driver import driver
from services.session.usecases.driver.runner import AttemptRunner

from .driving import world
from .scripted_executor import Attempt, ScriptedExecutor
from .test_driver_faults import greet

pytestmark = pytest.mark.integration


async def test_an_attempt_whose_items_the_log_has_lost_is_stopped_and_waited_out(
    session_database, monkeypatch
):
    monkeypatch.setattr(driver, "HEARTBEAT_GRACE", timedelta(seconds=1.2))
    began: list[float] = []
    clock = SystemClock()

    async def play(attempt: Attempt) -> None:
        began.append(clock.monotonic())
        attempt.started()
        if len(began) == 1:
            attempt.say("a commit that is lost")
        else:
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)
        (first,) = await it.until(lambda: _runs(it))
        await it.until(lambda: _all_acknowledged(first))
        await pool.drain()
        # As after a failover to an older state, long ago.
        first.forgotten = first.acknowledged
        turn = tables.turns.c.id == turn_id
        await it.change(
            tables.turns, turn, applied_offset=1, heartbeat_time=sa.text("now() - interval '1 hour'")
        )
        lost = clock.monotonic()
        (await it.pool()).wake(session_id)
        row = await it.ended(turn_id)
        assert (row.state, row.attempt, row.lost_attempts) == ("SUCCEEDED", 2, 1)
        assert first.interrupted.is_set()
        assert not first.parked
        assert began[1] - lost > 1.2


async def test_a_drain_is_not_lost_on_a_stream_that_breaks_at_that_moment(session_database, monkeypatch):
    looking, breaking, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def look_for_long(self, turn):
        looking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            breaking.set()
            await go.wait()
            raise

    async def break_then(self, stream):
        await looking.wait()
        raise unavailable("EXECUTOR_AWAY", "the stream broke", retry_after_seconds=1)

    monkeypatch.setattr(FencedConnection, "refresh", look_for_long)
    monkeypatch.setattr(AttemptRunner, "follow", break_then)
    async with world(session_database, ScriptedExecutor(greet)) as it:
        session_id = await it.session()
        await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)
        await asyncio.wait_for(breaking.wait(), 10)
        draining = asyncio.create_task(pool.drain())
        driving = pool._tasks[session_id]

        async def told():
            return driving.cancelling()

        await it.until(told)
        go.set()
        await asyncio.wait_for(draining, 5)
        assert pool.driven == 0
        it.pools.clear()


async def _runs(it):
    return it.executor.runs


async def _all_acknowledged(attempt):
    return attempt.items and attempt.acknowledged == len(attempt.items)


async def test_the_end_of_an_attempt_is_acknowledged(session_database):
    async with world(session_database, ScriptedExecutor(greet)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await it.ended(turn_id)
        await it.until(lambda: _all_acknowledged(it.executor.runs[0]), 5)
