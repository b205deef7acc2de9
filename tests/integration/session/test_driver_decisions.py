"""Between a decision and its use: what is committed is sent until it is heard, and what is not never happened."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.kernel.clock import SystemClock
from services.kernel.errors import ErrorKind, ServiceError, unavailable
from services.session.domain.turn_items import AttemptKey
from services.session.store import tables
from services.session.store.fenced import FencedConnection
from services.session.store.system_queries import DriverQueries

from .driving import World, world
from .scripted_executor import Attempt, ScriptedExecutor
from .test_driver_faults import _answer, _asked

pytestmark = pytest.mark.integration

MAKE = {"command": "make"}


async def use_bash(attempt: Attempt) -> None:
    attempt.started()
    attempt.ask("t1", "Bash", MAKE)
    decision = await attempt.decided("t1")
    attempt.result("t1", "made" if decision.allow else decision.reason, is_error=not decision.allow)
    attempt.end("SUCCEEDED")


def kinds_about_tools(log: list[tuple[int, str, Any]]) -> list[str]:
    return [kind for _, kind, _ in log if kind.startswith("tool_")]


class FailingOnce:
    """In place of an executor's `decide`: the first call fails or never comes back, as one to a lost peer."""

    def __init__(self, it: World, *, hang: bool) -> None:
        self._decide = it.executors.decide
        self._hang = hang
        self.failed = asyncio.Event()

    async def __call__(self, key: AttemptKey, epoch: int, tool_use_id: str, allow: bool, reason: str) -> None:
        if not self.failed.is_set():
            self.failed.set()
            if self._hang:
                await asyncio.Event().wait()
            raise ServiceError(
                ErrorKind.UNAVAILABLE,
                reason="UPSTREAM",
                domain="test.aiagent",
                message="the connection broke",
            )
        await self._decide(key, epoch, tool_use_id, allow, reason)


@pytest.mark.parametrize("options", [{"allowed_tools": ["Bash"]}, {"disallowed_tools": ["Bash"]}])
async def test_a_decision_that_did_not_get_through_is_sent_again(session_database, monkeypatch, options):
    async with world(session_database, ScriptedExecutor(use_bash)) as it:
        decide = FailingOnce(it, hang=False)
        monkeypatch.setattr(it.executors, "decide", decide)
        session_id = await it.session(**options)
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(turn_id, 10)).attempt == 1
        assert decide.failed.is_set()
        assert kinds_about_tools(await it.log(session_id)) == ["tool_use", "tool_decision", "tool_result"]


@pytest.mark.parametrize("options", [{"allowed_tools": ["Bash"]}, {"disallowed_tools": ["Bash"]}])
async def test_a_decision_outlives_the_replica_that_took_it(session_database, monkeypatch, options):
    async with world(session_database, ScriptedExecutor(use_bash)) as it:
        decide = FailingOnce(it, hang=True)
        monkeypatch.setattr(it.executors, "decide", decide)
        session_id = await it.session(**options)
        turn_id = await it.send(session_id)
        first = await it.pool()
        first.wake(session_id)
        await asyncio.wait_for(decide.failed.wait(), 10)
        await first.drain()
        await it.pool()
        row = await it.ended(turn_id, 15)
        assert (row.state, row.attempt) == ("SUCCEEDED", 1)
        assert kinds_about_tools(await it.log(session_id)) == ["tool_use", "tool_decision", "tool_result"]
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert call.state == ("SUCCEEDED" if "allowed_tools" in options else "DENIED")


async def test_what_a_failed_transaction_held_is_written_by_the_next(session_database, monkeypatch):
    write = FencedConnection.write
    failed = asyncio.Event()

    async def fail_with_the_call(self, turn, changes, *, expected_offset):
        if changes.tool_calls and not failed.is_set():
            failed.set()
            raise unavailable("DATABASE_UNAVAILABLE", "the connection broke", retry_after_seconds=1)
        return await write(self, turn, changes, expected_offset=expected_offset)

    monkeypatch.setattr(FencedConnection, "write", fail_with_the_call)
    async with world(session_database, ScriptedExecutor(use_bash)) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(turn_id, 15)).state == "SUCCEEDED"
        assert failed.is_set()
        assert kinds_about_tools(await it.log(session_id)) == ["tool_use", "tool_decision", "tool_result"]
        assert len(await it.rows(tables.tool_calls, session_id)) == 1


async def test_a_decision_is_in_the_log_before_the_executor_hears_of_it(session_database, monkeypatch):
    write = FencedConnection.write
    heard: list[int] = []

    async def look_at_the_executor(self, turn, changes, *, expected_offset):
        written = await write(self, turn, changes, expected_offset=expected_offset)
        if any(update.decision for update in changes.tool_call_updates):
            # Long enough for a call to it that was made before.
            await SystemClock().sleep(0.1)
            heard.append(len(it.executor.runs[0].decisions))
        return written

    monkeypatch.setattr(FencedConnection, "write", look_at_the_executor)
    async with world(session_database, ScriptedExecutor(use_bash)) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(turn_id)).state == "SUCCEEDED"
        assert heard == [0]
        assert len(it.executor.runs[0].decisions) == 1


async def test_an_answer_that_comes_while_the_process_is_parked_starts_the_next_attempt(session_database):
    parking = asyncio.Event()
    answered = asyncio.Event()

    async def play(attempt: Attempt) -> None:
        number = attempt.request.fence.attempt
        attempt.started()
        attempt.ask(f"t{number}", "Bash", MAKE, "same")
        if number == 1:
            await attempt.interrupted.wait()
            parking.set()
            # The CLI takes a moment to end. Its call is denied by the executor itself.
            await answered.wait()
            attempt.result("t1", "the turn is being stopped", is_error=True)
            attempt.end("PARKED")
        else:
            assert (await attempt.decided("t2")).allow
            attempt.result("t2", "made")
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool(hold_seconds=0.2)
        pool.wake(session_id)
        request = await _asked(it, session_id)
        await asyncio.wait_for(parking.wait(), 10)
        await _answer(it, request, "ALLOWED")
        pool.wake(session_id)
        answered.set()
        row = await it.ended(turn_id, 15)
        assert (row.state, row.attempt) == ("SUCCEEDED", 2)
        log = kinds_about_tools(await it.log(session_id))
        assert log == ["tool_use", "tool_use", "tool_decision", "tool_result"]


@pytest.mark.parametrize("by", ["a lost answer", "another driver"])
async def test_an_answer_is_for_the_next_attempt_though_the_stream_broke_while_parking(
    session_database, monkeypatch, by
):
    parking, answered = asyncio.Event(), asyncio.Event()

    async def play(attempt: Attempt) -> None:
        number = attempt.request.fence.attempt
        attempt.started()
        attempt.ask(f"t{number}", "Bash", MAKE, "same")
        if number == 1:
            await attempt.interrupted.wait()
            parking.set()
            await answered.wait()
            attempt.result("t1", "the turn is being stopped", is_error=True)
            attempt.end("PARKED")
        else:
            assert (await attempt.decided("t2")).allow
            attempt.result("t2", "made")
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        interrupt, lost = it.executors.interrupt, asyncio.Event()

        async def lose_the_answer(key: AttemptKey, epoch: int, *, park: bool) -> None:
            await interrupt(key, epoch, park=park)
            if by == "a lost answer" and not lost.is_set():
                lost.set()
                raise unavailable("UPSTREAM", "the connection broke", retry_after_seconds=1)

        monkeypatch.setattr(it.executors, "interrupt", lose_the_answer)
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool(hold_seconds=0.2)
        pool.wake(session_id)
        request = await _asked(it, session_id)
        await asyncio.wait_for(parking.wait(), 10)
        if by == "another driver":
            await pool.drain()
        await _answer(it, request, "ALLOWED")
        if by == "another driver":
            pool = await it.pool(hold_seconds=0.2)
        pool.wake(session_id)

        async def attached():
            return it.executor.attached

        await it.until(attached)
        # Its look for answers comes before what the agent says on its way out.
        await it.until(lambda: _parked_again(it))
        answered.set()
        row = await it.ended(turn_id, 15)
        assert (row.state, row.attempt) == ("SUCCEEDED", 2)
        log = kinds_about_tools(await it.log(session_id))
        assert log == ["tool_use", "tool_use", "tool_decision", "tool_result"]


async def _parked_again(it: World) -> bool:
    return it.executor.runs[0].stops > 1


async def test_a_denial_by_the_executor_on_the_way_to_parking_is_no_answer(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.ask("t1", "Bash", MAKE, "same")
        await attempt.interrupted.wait()
        attempt.result("t1", "the turn is being stopped", is_error=True)
        attempt.end("PARKED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool(hold_seconds=0.2)).wake(session_id)

        async def parked():
            row = await it.turn(turn_id)
            return row if row.parked else None

        row = await it.until(parked)
        assert (row.state, row.active_since) == ("WAITING", None)
        assert [request.state for request in await it.rows(tables.permission_requests, session_id)] == [
            "PENDING"
        ]
        assert kinds_about_tools(await it.log(session_id)) == ["tool_use"]


async def test_a_parked_turn_lets_go_of_its_driver_with_others_queued_behind_it(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.ask("t1", "Bash", MAKE, "same")
        await attempt.interrupted.wait()
        attempt.end("PARKED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        await it.send(session_id)
        await it.send(session_id)
        pool = await it.pool(hold_seconds=0.2)
        pool.wake(session_id)
        await _asked(it, session_id)

        async def let_go():
            return not pool.driven

        await it.until(let_go)
        assert session_id not in await DriverQueries(session_database).abandoned(50)


async def test_an_input_that_no_structure_can_hold_does_not_stop_the_log(session_database):
    deep: Any = {"a": 2**60}
    for _ in range(60):
        deep = {"a": deep}

    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.ask("t1", "Bash", deep)
        await attempt.decided("t1")
        attempt.result("t1", "made")
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(turn_id, 10)).state == "SUCCEEDED"
        (use,) = [payload.tool_use for _, kind, payload in await it.log(session_id) if kind == "tool_use"]
        assert json.loads(use.input_content.text) == deep


async def test_a_name_that_the_model_gives_to_two_calls_does_not_stop_the_turn(session_database):
    async with world(session_database, ScriptedExecutor(use_bash)) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        pool = await it.pool()
        turns = []
        for _ in range(2):
            turns.append(await it.send(session_id))
            pool.wake(session_id)
            assert (await it.ended(turns[-1], 10)).state == "SUCCEEDED"
        calls = await it.rows(tables.tool_calls, session_id)
        assert [(call.turn_id, call.state) for call in calls] == [(turn, "SUCCEEDED") for turn in turns]


CLEAN = {"command": "make clean"}


async def ask_anew(attempt: Attempt) -> None:
    attempt.started()
    attempt.ask("t1", "Bash", MAKE, "make")
    await attempt.decided("t1", "make")
    attempt.ask("t1", "Bash", CLEAN, "clean")
    decision = await attempt.decided("t1", "clean")
    attempt.result("t1", "made" if decision.allow else decision.reason, is_error=not decision.allow)
    attempt.end("SUCCEEDED")


@pytest.mark.parametrize(("disallowed", "state"), [([], "SUCCEEDED"), (["Bash(make clean)"], "DENIED")])
async def test_a_call_with_another_input_is_decided_anew_and_that_decision_is_sent_again(
    session_database, monkeypatch, disallowed, state
):
    async with world(session_database, ScriptedExecutor(ask_anew)) as it:
        decide, failed = it.executors.decide, asyncio.Event()

        async def fail_for_the_second(
            key: AttemptKey, epoch: int, use: Any, allow: bool, reason: str
        ) -> None:
            if use.input_hash == "clean" and not failed.is_set():
                failed.set()
                raise unavailable("UPSTREAM", "the connection broke", retry_after_seconds=1)
            await decide(key, epoch, use, allow, reason)

        monkeypatch.setattr(it.executors, "decide", fail_for_the_second)
        session_id = await it.session(allowed_tools=["Bash"], disallowed_tools=disallowed)
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(turn_id, 10)).attempt == 1
        assert failed.is_set()
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert (call.state, call.input_hash, json.loads(call.input_text)) == (state, "clean", CLEAN)


async def test_what_was_decided_on_one_input_is_not_sent_for_another_that_a_person_is_asked_about(
    session_database,
):
    executor = ScriptedExecutor(ask_anew)
    async with world(session_database, executor) as it:
        session_id = await it.session(allowed_tools=["Bash(make)"])
        turn_id = await it.send(session_id)
        first = await it.pool()
        first.wake(session_id)
        request = await _asked(it, session_id)
        await first.drain()
        second = await it.pool()
        second.wake(session_id)

        async def attached():
            return executor.attached

        await it.until(attached)
        assert {name: d.allow for name, d in executor.runs[0].decisions.items()} == {("t1", "make"): True}
        assert (request.input_hash, json.loads(request.input_text)) == ("clean", CLEAN)
        await _answer(it, request, "DENIED", "not that")
        second.wake(session_id)
        await it.ended(turn_id, 10)
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert (call.state, call.decision_reason, call.result_text) == ("DENIED", "not that", "not that")
