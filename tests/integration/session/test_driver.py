"""Drivers against a real database and an executor that plays a script over real gRPC."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services.session.store import tables

from .driving import world
from .scripted_executor import Attempt, ScriptedExecutor

pytestmark = pytest.mark.integration

DECISIONS = {"Bash": {"command": "make"}, "Read": {"file_path": "a.txt"}}


async def greet(attempt: Attempt) -> None:
    attempt.started()
    attempt.say("hello there")
    attempt.end("SUCCEEDED")


async def use_a_tool(attempt: Attempt) -> None:
    attempt.started()
    attempt.say("let me see")
    attempt.ask("t1", "Bash", DECISIONS["Bash"])
    decision = await attempt.decided("t1")
    attempt.result("t1", "made" if decision.allow else decision.reason, is_error=not decision.allow)
    attempt.say("done" if decision.allow else "not allowed")
    attempt.end("SUCCEEDED")


async def wait_to_be_stopped(attempt: Attempt) -> None:
    attempt.started()
    attempt.say("this takes long")
    await attempt.interrupted.wait()
    attempt.end("PARKED" if attempt.parked else "INTERRUPTED")


async def test_a_turn_in_the_background_waits_while_what_is_free_is_kept_for_others(session_database):
    async with world(session_database, ScriptedExecutor(greet)) as it:
        it.executor.max_background_clients = it.executor.background_clients = 6
        background, interactive = await it.session(mode="BACKGROUND"), await it.session()
        held_up, others = await it.send(background), await it.send(interactive)
        pool = await it.pool()
        pool.wake(background)
        while not it.executor.described:
            await asyncio.sleep(0.01)
        pool.wake(interactive)
        assert (await it.ended(others)).state == "SUCCEEDED"
        (queued,) = await it.rows(tables.turns, background)
        assert (queued.state, queued.attempt) == ("QUEUED", 0)
        it.executor.background_clients = 5
        pool.wake(background)
        assert (await it.ended(held_up)).state == "SUCCEEDED"
        assert [run.request.background for run in it.executor.runs] == [False, True]


async def test_a_turn_runs_from_message_to_result(session_database):
    async with world(session_database, ScriptedExecutor(greet)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id, "hi")
        pool = await it.pool()
        pool.wake(session_id)
        row = await it.ended(turn_id)

        assert (row.state, row.result_text, row.attempt) == ("SUCCEEDED", "hello there", 1)
        assert (row.input_tokens, row.output_tokens, float(row.cost_usd)) == (10, 5, 0.5)
        log = await it.log(session_id)
        assert [sequence for sequence, _, _ in log] == list(range(1, len(log) + 1))
        assert [kind for _, kind, _ in log] == [
            "user_message",
            "turn_state_changed",
            "turn_state_changed",
            "session_state_changed",
            "attempt_started",
            "turn_state_changed",
            "session_state_changed",
            "assistant_message",
            "turn_ended",
            "session_state_changed",
        ]
        # What was published is what the log holds after the message, in order.
        assert [event.sequence for event in it.feed.events] == list(range(3, len(log) + 1))
        assert "".join(delta[6] for delta in it.feed.deltas) == "hello there"
        (session,) = await it.rows(tables.sessions, session_id)
        assert (session.state, session.current_turn_id, session.messages) == ("ACTIVE", None, 1)
        assert session.cli_session_id is not None
        assert (await it.rows(tables.messages, session_id))[0].content_text == "hello there"
        assert it.executor.runs[0].request.prompt == "hi"

        async def released():
            (head,) = await it.rows(tables.session_heads, session_id)
            return head.lease_holder is None

        await it.until(released)


async def test_turns_of_a_session_run_one_after_the_other(session_database):
    running, most = 0, 0

    async def play(attempt: Attempt) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        attempt.started()
        attempt.say(attempt.request.prompt)
        running -= 1
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turns = [await it.send(session_id, f"message {number}") for number in range(4)]
        pools = [await it.pool(), await it.pool()]
        for pool in pools:
            pool.wake(session_id)
        rows = [await it.ended(turn_id) for turn_id in turns]

        assert [row.result_text for row in rows] == [f"message {number}" for number in range(4)]
        assert most == 1
        assert [row.start_time for row in rows] == sorted(row.start_time for row in rows)
        # The conversation is carried on, not begun anew.
        resumed = {attempt.request.cli_session_id for attempt in it.executor.runs[1:]}
        assert len(resumed) == 1 and "" not in resumed


@pytest.mark.parametrize(
    ("options", "allow", "source"),
    [
        ({"allowed_tools": ["Bash"]}, True, "ALLOWED_TOOLS"),
        ({"disallowed_tools": ["Bash"]}, False, "DISALLOWED_TOOLS"),
        ({"permission_mode": "BYPASS_PERMISSIONS"}, True, "PERMISSION_MODE"),
        ({"permission_mode": "PLAN"}, False, "PERMISSION_MODE"),
    ],
)
async def test_rules_decide_without_asking(session_database, options, allow, source):
    async with world(session_database, ScriptedExecutor(use_a_tool)) as it:
        session_id = await it.session(**options)
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await it.ended(turn_id)

        (call,) = await it.rows(tables.tool_calls, session_id)
        assert (call.decision_allowed, call.decision_source) == (allow, source)
        assert call.state == ("SUCCEEDED" if allow else "DENIED")
        assert not await it.rows(tables.permission_requests, session_id)
        kinds = [kind for _, kind, _ in await it.log(session_id)]
        # The decision is in the log before the result it led to.
        assert kinds.index("tool_use") < kinds.index("tool_decision") < kinds.index("tool_result")


async def _asked(it, session_id):
    async def pending():
        found = await it.rows(tables.permission_requests, session_id)
        return found[-1] if found and found[-1].state == "PENDING" else None

    return await it.until(pending)


async def _answer(it, request, state, reason=""):
    await it.change(
        tables.permission_requests,
        tables.permission_requests.c.id == request.id,
        state=state,
        reason=reason,
        resolve_time=sa.func.clock_timestamp(),
        resolved_by=request.user_id,
    )


@pytest.mark.parametrize(("state", "allow"), [("ALLOWED", True), ("DENIED", False)])
async def test_a_person_is_asked_and_the_answer_used_once(session_database, state, allow):
    async with world(session_database, ScriptedExecutor(use_a_tool)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)
        request = await _asked(it, session_id)
        assert (await it.turn(turn_id)).state == "WAITING"
        assert (await it.rows(tables.sessions, session_id))[0].state == "WAITING"

        await _answer(it, request, state, "because")
        pool.wake(session_id)
        row = await it.ended(turn_id)

        assert row.result_text == ("done" if allow else "not allowed")
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert (call.decision_source, call.decision_reason) == ("PERSON", "because")
        assert call.decision_user_id == request.user_id
        (request,) = await it.rows(tables.permission_requests, session_id)
        assert request.consume_time is not None


async def test_an_answer_is_found_without_being_woken(session_database):
    async with world(session_database, ScriptedExecutor(use_a_tool)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        await it.pool()
        await _answer(it, await _asked(it, session_id), "ALLOWED")
        assert (await it.ended(turn_id, 4.0)).state == "SUCCEEDED"


async def test_a_question_expires_to_a_denial(session_database):
    async with world(session_database, ScriptedExecutor(use_a_tool)) as it:
        session_id = await it.session(permission_timeout=timedelta(seconds=0.5))
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        row = await it.ended(turn_id)

        assert row.result_text == "not allowed"
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert (call.decision_allowed, call.decision_source) == (False, "EXPIRY")
        (request,) = await it.rows(tables.permission_requests, session_id)
        assert request.state == "EXPIRED"
        assert "permission_resolved" in [kind for _, kind, _ in await it.log(session_id)]


async def test_an_interrupt_ends_the_turn(session_database):
    async with world(session_database, ScriptedExecutor(wait_to_be_stopped)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)

        async def runs():
            return (await it.turn(turn_id)).state == "RUNNING"

        await it.until(runs)
        await it.change(tables.turns, tables.turns.c.id == turn_id, interrupt_time=sa.func.clock_timestamp())
        # Nobody wakes the driver: it looks by itself.
        assert (await it.ended(turn_id, 2.0)).state == "INTERRUPTED"


async def test_a_turn_over_its_time_is_stopped(session_database):
    async with world(session_database, ScriptedExecutor(wait_to_be_stopped)) as it:
        session_id = await it.session(turn_timeout=timedelta(seconds=1))
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        row = await it.ended(turn_id)
        assert (row.state, row.failure_reason) == ("TIMED_OUT", "TURN_TIMEOUT")


async def test_a_budget_that_is_spent_starts_no_attempt(session_database):
    async with world(session_database, ScriptedExecutor(greet)) as it:
        session_id = await it.session(max_budget_usd=0.4)
        first, second = await it.send(session_id), await it.send(session_id)
        (await it.pool()).wake(session_id)
        assert (await it.ended(first)).state == "SUCCEEDED"
        assert (await it.ended(second)).state == "BUDGET_EXCEEDED"
        assert len(it.executor.runs) == 1
