"""Replicas that stand still in the middle of a transaction: they hold their own sessions up, and no other."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.session.domain.driving import HEARTBEAT_GRACE
from services.session.store import event_log, tables
from services.session.store.system_queries import DriverQueries
from services.session.usecases.driver import pool as driver_pool

from .driving import world
from .scripted_executor import Attempt, ScriptedExecutor

pytestmark = pytest.mark.integration
SOON = 4.5
"""Seconds; less than the five for which a statement waits for a lock."""


async def greet(attempt: Attempt) -> None:
    attempt.started()
    attempt.say("hello")
    attempt.end("SUCCEEDED")


async def work_long(attempt: Attempt) -> None:
    attempt.started()
    attempt.say("hello")
    await attempt.interrupted.wait()
    attempt.end("INTERRUPTED")


async def test_sessions_that_a_frozen_replica_holds_are_left_for_later(session_database):
    async with world(session_database, ScriptedExecutor(greet)) as it:
        held = [await it.session() for _ in range(8)]
        turns = [await it.send(session_id) for session_id in held]
        pool = await it.pool()
        async with it.database.system() as frozen:
            # Its leases have run out while it was renewing them.
            heads = tables.session_heads
            await frozen.execute(
                sa.update(heads)
                .where(heads.c.session_id.in_(held))
                .values(lease_expire_time=sa.func.clock_timestamp())
            )
            for session_id in held:
                pool.wake(session_id)
            healthy = await it.session()
            turn_id = await it.send(healthy)
            pool.wake(healthy)
            assert (await it.ended(turn_id, SOON)).state == "SUCCEEDED"
            assert {(await it.turn(held_turn)).state for held_turn in turns} == {"QUEUED"}
        for held_turn in turns:
            assert (await it.ended(held_turn)).state == "SUCCEEDED"


async def test_a_turn_that_a_frozen_replica_holds_stops_no_other_heartbeats(session_database):
    async with world(session_database, ScriptedExecutor(work_long)) as it:
        sessions = [await it.session() for _ in range(2)]
        turns = [await it.send(session_id) for session_id in sessions]
        pool = await it.pool()
        for session_id in sessions:
            pool.wake(session_id)

        async def run_of(session_id):
            runs = {run.request.fence.session_id: run for run in it.executor.runs}
            run = runs.get(str(session_id))
            return run if run is not None and run.heartbeats else None

        other, held = [await it.until(lambda one=one: run_of(one)) for one in sessions]
        async with it.database.system() as frozen:
            # An interrupt of the second session, before its commit.
            await event_log.lock_head(frozen, sessions[1])
            await frozen.execute(
                sa.update(tables.turns).where(tables.turns.c.id == turns[1]).values(user_id=sessions[1])
            )
            before, silent = other.heartbeats, held.heartbeats

            async def three_more():
                return other.heartbeats >= before + 3

            await it.until(three_more, SOON)
            assert held.heartbeats <= silent + 1, "no time was stored for it"


async def test_no_heartbeat_is_sent_long_after_its_time(session_database, monkeypatch):
    async with world(session_database, ScriptedExecutor(work_long)) as it:
        session_id = await it.session()
        await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)

        async def beating():
            return [run for run in it.executor.runs if run.heartbeats >= 2]

        (run,) = await it.until(beating)
        renew, stood_still = DriverQueries.renew, asyncio.Event()

        async def thaw_late(self, held, turn_ids):
            answer = await renew(self, held, turn_ids)
            pool._clock.ahead += 2 * driver_pool.LATE_SECONDS
            stood_still.set()
            return answer

        pool._clock = Skipping(pool._clock)
        monkeypatch.setattr(DriverQueries, "renew", thaw_late)
        await asyncio.wait_for(stood_still.wait(), 5)
        stood_still.clear()
        before = run.heartbeats
        for _ in range(2):
            await asyncio.wait_for(stood_still.wait(), 5)
            stood_still.clear()
        assert run.heartbeats == before


class Skipping:
    """A clock that is put forward."""

    def __init__(self, clock):
        self._clock = clock
        self.ahead = 0.0

    def monotonic(self):
        return self._clock.monotonic() + self.ahead

    def __getattr__(self, name):
        return getattr(self._clock, name)


def test_the_grace_covers_all_that_may_be_between_a_heartbeats_time_and_the_end_of_the_agent():
    # The executor's side, and how long a heartbeat may be on its way, as they are set in their modules.
    from services.executor.usecases.turns import DRIVER_SILENCE_SECONDS
    from services.session.gateways.executors import _HEARTBEAT_TIMEOUT_SECONDS

    killed_within = 0.5
    late = driver_pool.LATE_SECONDS + _HEARTBEAT_TIMEOUT_SECONDS
    assert timedelta(seconds=late + DRIVER_SILENCE_SECONDS + killed_within) < HEARTBEAT_GRACE
