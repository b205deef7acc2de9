"""What drivers make of broken streams, lost executors, other replicas and questions that outlive them all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from aiagent.executor.v1 import executor_service_pb2 as pb
from services.kernel.errors import ErrorKind, ServiceError
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


@pytest.mark.parametrize("after", range(1, 12))
async def test_a_broken_stream_is_taken_up_where_the_log_ends(session_database, after):
    executor = ScriptedExecutor(use_a_tool)
    executor.break_after = after
    async with world(session_database, executor) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        row = await it.ended(turn_id)

        assert (row.state, row.attempt, row.result_text) == ("SUCCEEDED", 1, "done")
        assert executor.attached == 1
        kinds = [kind for _, kind, _ in await it.log(session_id)]
        assert [
            kind
            for kind in kinds
            if kind in ("assistant_message", "tool_use", "tool_decision", "tool_result")
        ] == [
            "assistant_message",
            "tool_use",
            "tool_decision",
            "tool_result",
            "assistant_message",
        ]


class DeafExecutor(ScriptedExecutor):
    """Does not take the first decisions, as one that is frozen for a while."""

    deaf = 2

    async def DecideTool(self, request: pb.DecideToolRequest, context: Any) -> pb.DecideToolResponse:
        if self.deaf:
            self.deaf -= 1
            raise ServiceError(
                ErrorKind.UNAVAILABLE, reason="FROZEN", domain="executor.aiagent", message="frozen"
            )
        return await super().DecideTool(request, context)


@pytest.mark.parametrize("asks", [False, True])
async def test_a_decision_that_did_not_arrive_is_sent_again(session_database, asks):
    async with world(session_database, DeafExecutor(use_a_tool)) as it:
        session_id = await it.session(allowed_tools=[] if asks else ["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        if asks:
            await _answer(it, await _asked(it, session_id), "ALLOWED")
        row = await it.ended(turn_id)

        assert (row.state, row.attempt, row.result_text) == ("SUCCEEDED", 1, "done")
        kinds = [kind for _, kind, _ in await it.log(session_id)]
        assert kinds.count("tool_decision") == 1


@pytest.mark.parametrize("at", ["RUNNING", "WAITING"])
async def test_another_replica_takes_over_the_same_attempt(session_database, at):
    gate = asyncio.Event()

    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.say("one")
        if at == "WAITING":
            attempt.ask("t1", "Bash", DECISIONS["Bash"])
            await attempt.decided("t1")
            attempt.result("t1", "made")
        else:
            await gate.wait()
        attempt.say("two")
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        first = await it.pool()
        first.wake(session_id)

        async def reached():
            return (await it.turn(turn_id)).state == at

        await it.until(reached)
        # Killed, not drained: its tasks end, its lease runs out.
        for task in [*first._tasks.values(), *first._loops]:
            task.cancel()
        await it.pool()
        if at == "WAITING":
            await _answer(it, await _asked(it, session_id), "ALLOWED")
        else:
            gate.set()
        row = await it.ended(turn_id)

        assert (row.state, row.attempt) == ("SUCCEEDED", 1)
        assert len(it.executor.runs) == 1 and it.executor.attached >= 1
        (head,) = await it.rows(tables.session_heads, session_id)
        assert head.lease_epoch == 2


async def test_a_restarted_executor_gets_another_attempt_told_what_possibly_ran(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        if attempt.request.fence.attempt == 1:
            attempt.ask("t1", "Bash", DECISIONS["Bash"])
            await attempt.decided("t1")
            restarted.set()
        else:
            attempt.say("went on")
            attempt.end("SUCCEEDED")

    restarted = asyncio.Event()
    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session(allowed_tools=["Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await restarted.wait()
        it.executor.restart()
        row = await it.ended(turn_id)

        assert (row.state, row.attempt, row.lost_attempts) == ("SUCCEEDED", 2, 1)
        (call,) = await it.rows(tables.tool_calls, session_id)
        assert call.state == "POSSIBLY_RUN"
        second = it.executor.runs[1].request
        assert [possibly.tool_name for possibly in second.possibly_run] == ["Bash"]
        assert second.cli_session_id == str((await it.rows(tables.sessions, session_id))[0].cli_session_id)


async def test_what_a_lost_attempt_has_cost_is_kept_and_is_off_the_budget(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        if len(it.executor.runs) == 1:
            attempt.spend(0.25)
            attempt.ask("t1", "Bash", DECISIONS["Bash"])
            await attempt.decided("t1")
            restarted.set()
        else:
            # Read in one stream and, after a cut, in another: counted once all the same.
            it.executor.break_after = 2
            attempt.spend(0.125)
            attempt.say("went on")
            attempt.end("SUCCEEDED", cost_usd=0.5)

    restarted = asyncio.Event()
    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session(allowed_tools=["Bash"], max_budget_usd=2.0)
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await restarted.wait()
        it.executor.restart()
        row = await it.ended(turn_id)

        assert (row.state, row.attempt) == ("SUCCEEDED", 2)
        assert it.executor.attached
        (session,) = await it.rows(tables.sessions, session_id)
        assert float(row.cost_usd) == float(session.cost_usd) == 0.875
        assert (row.input_tokens, session.input_tokens) == (16, 16)
        assert (row.cache_read_tokens, row.model_calls) == (2, 3)
        assert [attempt.request.budget_usd for attempt in it.executor.runs] == [2.0, 1.75]


async def test_attempts_are_bounded(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.end("LOST", "CLI_DIED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        row = await it.ended(turn_id)
        assert (row.state, row.failure_reason, row.attempt) == ("FAILED", "ATTEMPTS_EXHAUSTED", 3)
        assert "CLI_DIED" in row.failure_message


async def test_a_question_outlives_the_executor_and_its_answer_is_used_by_the_next_attempt(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.ask(f"t{attempt.request.fence.attempt}", "Bash", DECISIONS["Bash"], "same")
        decision = await attempt.decided(f"t{attempt.request.fence.attempt}")
        attempt.say("allowed" if decision.allow else "denied")
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        request = await _asked(it, session_id)
        it.executor.restart()

        async def parked():
            row = await it.turn(turn_id)
            return row.parked and row.state == "WAITING"

        await it.until(parked)
        assert len(it.executor.runs) == 1
        await _answer(it, request, "ALLOWED", "go on")
        row = await it.ended(turn_id)

        assert (row.state, row.result_text, row.attempt) == ("SUCCEEDED", "allowed", 2)
        told = it.executor.runs[1].request.earlier_decisions
        assert [(decision.tool_name, decision.allowed) for decision in told] == [("Bash", True)]
        assert len(await it.rows(tables.permission_requests, session_id)) == 1


async def test_an_answer_does_not_serve_a_different_call(session_database):
    async def play(attempt: Attempt) -> None:
        number = attempt.request.fence.attempt
        attempt.started()
        attempt.ask(f"t{number}", "Bash", {"command": f"make {number}"}, f"hash {number}")
        await attempt.decided(f"t{number}")
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        request = await _asked(it, session_id)
        it.executor.restart()
        await _answer(it, request, "ALLOWED")
        second = await _asked(it, session_id)
        assert second.id != request.id
        await _answer(it, second, "DENIED")
        await it.ended(turn_id)
        by_call = {call.tool_use_id: call.state for call in await it.rows(tables.tool_calls, session_id)}
        assert by_call == {"t1": "ABANDONED", "t2": "ABANDONED"} or by_call["t2"] == "DENIED"


async def test_a_long_question_parks_the_turn_without_losing_an_attempt(session_database):
    async def play(attempt: Attempt) -> None:
        attempt.started()
        attempt.ask(f"t{attempt.request.fence.attempt}", "Bash", DECISIONS["Bash"], "same")
        if attempt.request.fence.attempt == 1:
            await attempt.interrupted.wait()
            assert attempt.parked
            attempt.end("PARKED")
        else:
            await attempt.decided("t2")
            attempt.say("after the answer")
            attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool(hold_seconds=0.2)
        pool.wake(session_id)
        request = await _asked(it, session_id)

        async def parked():
            (head,) = await it.rows(tables.session_heads, session_id)
            return (await it.turn(turn_id)).parked and head.lease_holder is None

        await it.until(parked)
        await _answer(it, request, "ALLOWED")
        row = await it.ended(turn_id)
        assert (row.state, row.lost_attempts, row.result_text) == ("SUCCEEDED", 0, "after the answer")


async def test_an_executor_without_room_leaves_the_turn_queued(session_database):
    executor = ScriptedExecutor(greet)
    executor.full = True
    async with world(session_database, executor) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)

        async def refused():
            row = await it.turn(turn_id)
            return row.attempt >= 1 and row.state == "QUEUED"

        await it.until(refused)
        executor.full = False
        row = await it.ended(turn_id)
        assert (row.state, row.lost_attempts) == ("SUCCEEDED", 0)


async def test_an_executor_that_drains_is_not_asked_to_take_the_turn(session_database):
    executor = ScriptedExecutor(greet)
    executor.draining = True
    async with world(session_database, executor) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)

        async def looked_three_times():
            return executor.described >= 3

        await it.until(looked_three_times)
        row = await it.turn(turn_id)
        assert (row.state, row.attempt) == ("QUEUED", 0)
        executor.draining = False
        assert (await it.ended(turn_id)).state == "SUCCEEDED"


async def test_a_deleted_session_is_forgotten_everywhere(session_database):
    async with world(session_database, ScriptedExecutor(wait_to_be_stopped)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        pool.wake(session_id)

        async def runs():
            return (await it.turn(turn_id)).state == "RUNNING"

        await it.until(runs)
        await it.change(
            tables.sessions, tables.sessions.c.id == session_id, delete_time=sa.func.clock_timestamp()
        )

        async def gone():
            return not await it.rows(tables.sessions, session_id)

        await it.until(gone)
        assert it.executor.forgotten == [str(session_id)]
        assert it.blobs.deleted == [session_id, session_id]
        for table in (tables.events, tables.turns, tables.messages, tables.session_heads):
            assert not await it.rows(table, session_id)


async def test_a_drained_replica_hands_its_sessions_over_at_once(session_database):
    gate = asyncio.Event()

    async def play(attempt: Attempt) -> None:
        attempt.started()
        await gate.wait()
        attempt.end("SUCCEEDED")

    async with world(session_database, ScriptedExecutor(play)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        first = await it.pool()
        first.wake(session_id)

        async def runs():
            return (await it.turn(turn_id)).state == "RUNNING"

        await it.until(runs)
        await first.drain()
        (head,) = await it.rows(tables.session_heads, session_id)
        assert head.lease_holder is None
        await it.pool()
        gate.set()
        assert (await it.ended(turn_id, 4.0)).attempt == 1


async def test_a_turn_that_its_user_ends_while_it_is_being_placed_does_not_begin(
    session_database, monkeypatch
):
    executor = ScriptedExecutor(greet)
    async with world(session_database, executor) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        pool = await it.pool()
        placed = asyncio.Event()
        list_executors = it.executors.list_executors

        async def end_first():
            # The driver has read the turn as queued, and holds no lock.
            await it.change(tables.turns, tables.turns.c.id == turn_id, state="INTERRUPTED")
            placed.set()
            return await list_executors()

        monkeypatch.setattr(it.executors, "list_executors", end_first)
        pool.wake(session_id)
        await asyncio.wait_for(placed.wait(), 5)

        async def idle():
            (head,) = await it.rows(tables.session_heads, session_id)
            return head.lease_holder is None

        await it.until(idle)
        row = await it.turn(turn_id)
        assert (row.state, row.attempt) == ("INTERRUPTED", 0)
        assert not executor.attempts
