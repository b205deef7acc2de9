"""Whose an answer is when the agent that asked is gone, or on its way out."""

from __future__ import annotations

import asyncio

import pytest

from services.kernel.clock import SystemClock
from services.session.store import tables

from .driving import world
from .scripted_executor import Attempt, ScriptedExecutor
from .test_driver_decisions import MAKE
from .test_driver_faults import _answer, _asked

pytestmark = pytest.mark.integration


async def test_an_answer_to_an_agent_that_is_gone_is_for_the_next_one(session_database, monkeypatch):
    die = asyncio.Event()

    async def play(attempt: Attempt) -> None:
        attempt.started()
        number = attempt.request.fence.attempt
        attempt.ask(f"t{number}", "Bash", MAKE, "same")
        if number == 1:
            await die.wait()
            attempt.end("LOST", "CLI_DIED")
        else:
            assert (await attempt.decided("t2")).allow
            attempt.result("t2", "made")
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        acknowledge, acknowledging, looked = it.executors.acknowledge, asyncio.Event(), asyncio.Event()

        async def slow(key, epoch, offset):
            if die.is_set():
                acknowledging.set()
                await asyncio.wait_for(looked.wait(), 5)
            await acknowledge(key, epoch, offset)

        monkeypatch.setattr(it.executors, "acknowledge", slow)
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)
        request = await _asked(it, session_id)
        die.set()
        await acknowledging.wait()
        await _answer(it, request, "ALLOWED")
        driver = pool._drivers[session_id]
        pool.wake(session_id)

        async def has_looked():
            return not driver.woken

        await it.until(has_looked)
        (asked,) = await it.rows(tables.permission_requests, session_id)
        looked.set()
        assert (await it.ended(turn_id)).state == "SUCCEEDED"
        (used,) = await it.rows(tables.permission_requests, session_id)
        assert (asked.state, used.state, used.consume_time is not None) == ("ALLOWED", "ALLOWED", True)


async def test_the_hold_is_the_same_for_whoever_takes_over(session_database):
    parking, go = asyncio.Event(), asyncio.Event()

    async def play(attempt: Attempt) -> None:
        attempt.started()
        if attempt.request.fence.attempt == 1:
            attempt.ask("t1", "Bash", {"command": "one"}, "h1")
            await SystemClock().sleep(0.6)
            attempt.ask("t2", "Bash", {"command": "two"}, "h2")
            await attempt.decided("t1")
            attempt.result("t1", "one")
            await attempt.interrupted.wait()
            parking.set()
            await go.wait()
            attempt.result("t2", "the turn is being stopped", is_error=True)
            attempt.end("PARKED")
        else:
            attempt.ask("t3", "Bash", {"command": "two"}, "h2")
            assert (await attempt.decided("t3")).allow
            attempt.result("t3", "two")
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool(hold_seconds=1.0)
        pool.wake(session_id)
        await _asked(it, session_id)
        pool.wake(session_id)

        async def two_asked():
            found = await it.rows(tables.permission_requests, session_id)
            return sorted(found, key=lambda row: row.create_time) if len(found) == 2 else None

        first, second = await it.until(two_asked)
        await _answer(it, first, "ALLOWED")
        pool.wake(session_id)
        await asyncio.wait_for(parking.wait(), 10)
        await pool.drain()
        # The agent was told to make way, and has denied the call by itself: the answer is not for it.
        await _answer(it, second, "ALLOWED")
        (await it.pool(hold_seconds=1.0)).wake(session_id)

        async def attached():
            return it.executor.attached

        await it.until(attached)
        go.set()
        assert (await it.ended(turn_id)).state == "SUCCEEDED"
        assert len(await it.rows(tables.permission_requests, session_id)) == 2, "nobody was asked again"
