"""Turns under a user's hand: interrupting, sending twice, queueing, asking."""

from __future__ import annotations

import asyncio
import json
import time

import grpc
import pytest
from aiokafka import ConsumerRecord

from aiagent.events.v1.session_fact_pb2 import SessionFact
from aiagent.session.v1 import permission_service_pb2, session_pb2, session_service_pb2
from services.kernel.kafka.settings import Broker
from tests.kafka_broker import read_until
from tests.running_suite import RunningSuite

from .conftest import User, details, state_name
from .script import hang, prompt, recall, say, use
from .watching import Watcher

pytestmark = pytest.mark.e2e

LONG = "word " * 600
WHEN_BUSY = session_service_pb2.WhenBusy


async def _running(user: User, session_id: str, turn_id: str) -> None:
    """Waits until the turn runs."""
    async for response in user.watch(session_id):
        for item in response.items:
            event = item.event
            if event.turn_id == turn_id and event.payload.turn_state_changed.to_state == "RUNNING":
                return


@pytest.mark.parametrize("step", [say(LONG, tokens_per_second=20), use("Bash", command="sleep 300"), hang()])
async def test_an_interrupt_stops_within_two_seconds_and_the_conversation_goes_on(user: User, step):
    session_id = await user.create()
    await user.run(session_id, prompt(say("The secret word is pomegranate.")))
    turn = await user.send(session_id, prompt(step))
    await _running(user, session_id, turn.id)
    begun = time.monotonic()
    await user.call(
        user.sessions.InterruptTurn,
        session_service_pb2.InterruptTurnRequest(session_id=session_id, reason="enough"),
    )
    ended = await user.wait(session_id, turn.id, 10)
    assert state_name(ended) == "INTERRUPTED"
    assert time.monotonic() - begun < 2.0
    again = await user.run(session_id, prompt(recall("pomegranate")))
    assert "pomegranate" in again.result.text


async def test_the_same_request_id_starts_one_turn(user: User):
    session_id = await user.create()
    message = prompt(say("once"))
    turns = await asyncio.gather(
        *(user.send(session_id, message, request_id="again-and-again") for _ in range(5))
    )
    assert len({turn.id for turn in turns}) == 1
    await user.wait(session_id, turns[0].id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.send(session_id, "something else", request_id="again-and-again")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value)[0] == "REQUEST_ID_REUSED"
    kinds = [event.payload.WhichOneof("kind") for event in await user.events(session_id)]
    assert kinds.count("user_message") == 1


async def test_other_services_are_told_what_was_decided_and_how_it_ended(user: User, suite: RunningSuite):
    session_id = await user.create()
    turn = await user.run(session_id, prompt(use("Bash", command="true"), say("done")))
    note = json.loads((suite.state_dir / "run" / "suite.json").read_text("utf-8"))
    broker = Broker((note["kafka"].removeprefix("kafka://"),), local=True)

    def of_the_turn(records: list[ConsumerRecord]) -> list[SessionFact]:
        facts = [SessionFact.FromString(record.value) for record in records]
        return [fact for fact in facts if fact.turn_id == turn.id]

    decided, ended = of_the_turn(
        await read_until(broker, "session-facts", lambda records: len(of_the_turn(records)) == 2)
    )
    assert decided.permission_decided.decision.tool_name == "Bash"
    assert ended.turn_ended.state == "SUCCEEDED"
    assert ended.turn_ended.usage.output_tokens == turn.usage.output_tokens > 0


async def test_messages_at_once_run_one_after_the_other(user: User):
    session_id = await user.create()
    turns = await asyncio.gather(
        *(
            user.send(session_id, prompt(use("Bash", command=f"echo {n} >> log"), say(f"{n}")))
            for n in range(4)
        )
    )
    for turn in turns:
        assert state_name(await user.wait(session_id, turn.id)) == "SUCCEEDED"
    running = 0
    for event in await user.events(session_id):
        kind = event.payload.WhichOneof("kind")
        running += kind == "attempt_started"
        running -= kind == "turn_ended"
        assert running <= 1


async def test_a_busy_session_refuses_or_makes_way(user: User):
    session_id = await user.create()
    first = await user.send(session_id, prompt(say(LONG, tokens_per_second=20)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.send(session_id, "me too", when_busy=WHEN_BUSY.REJECT)
    assert details(refused.value)[0] == "SESSION_BUSY"
    queued = await user.send(session_id, prompt(say("never")))
    # Turns of other tests may wait, too.
    assert queued.queue_position >= 1
    urgent = await user.send(session_id, prompt(say("urgent")), when_busy=WHEN_BUSY.INTERRUPT)
    assert state_name(await user.wait(session_id, urgent.id)) == "SUCCEEDED"
    assert state_name(await user.wait(session_id, first.id)) == "INTERRUPTED"
    assert state_name(await user.wait(session_id, queued.id)) == "INTERRUPTED"


async def test_a_budget_is_for_all_turns_of_the_session_and_stops_them(user: User):
    session_id = await user.create(max_budget_usd=0.03)
    first = await user.run(session_id, prompt(say("cheap")))
    assert state_name(first) == "SUCCEEDED"
    second = await user.run(session_id, prompt(*[use("Bash", command="echo x >> log")] * 20))
    assert (state_name(second), second.failure.reason) == ("BUDGET_EXCEEDED", "BUDGET_EXCEEDED")
    assert 0 < second.tool_calls < 20
    third = await user.run(session_id, prompt(say("nothing left")))
    assert (state_name(third), third.cost_usd, third.model_calls) == ("BUDGET_EXCEEDED", 0, 0)
    assert 0.03 <= first.cost_usd + second.cost_usd < 0.06


@pytest.mark.parametrize("allow", [True, False])
async def test_a_person_decides(user: User, allow):
    session_id = await user.create("DEFAULT")
    turn = await user.send(
        session_id,
        prompt(use("Bash", command="echo yes > answer.txt"), use("Read", file_path="answer.txt"), say("ok")),
    )
    request = await user.asked(session_id, turn.id)
    assert request.tool_use.tool_name == "Bash"
    assert request.tool_use.input["command"] == "echo yes > answer.txt"
    await user.answer(request, allow=allow, reason="a good reason")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await user.answer(request, allow=True)
    assert details(late.value)[0] == "PERMISSION_REQUEST_RESOLVED"
    ended = await user.wait(session_id, turn.id)
    assert state_name(ended) == "SUCCEEDED"
    calls = (
        await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
    ).tool_calls
    assert calls[0].decision.source == "PERSON"
    assert calls[0].state == (session_pb2.ToolCall.SUCCEEDED if allow else session_pb2.ToolCall.DENIED)
    # The file is there only if a person allowed it.
    assert ("yes" in calls[1].result.content.text) == allow
    if not allow:
        assert "a good reason" in calls[0].result.content.text


async def test_a_question_nobody_answers_expires_to_a_denial(user: User):
    session_id = await user.create("DEFAULT", permission_timeout=1.0)
    turn = await user.send(
        session_id, prompt(use("Bash", command="touch ran"), use("Glob", pattern="*"), say("end"))
    )
    watcher = Watcher(user, session_id)
    assert await watcher.follow()
    assert state_name(await user.wait(session_id, turn.id)) == "SUCCEEDED"
    resolved = [
        e.payload.permission_resolved for e in watcher.events if e.payload.HasField("permission_resolved")
    ]
    assert [item.state for item in resolved] == ["EXPIRED"]
    decisions = [e.payload.tool_decision for e in watcher.events if e.payload.HasField("tool_decision")]
    assert (decisions[0].decision, decisions[0].source) == (decisions[0].DENY, decisions[0].EXPIRY)
    results = [e.payload.tool_result for e in watcher.events if e.payload.HasField("tool_result")]
    assert "ran" not in results[1].content.text


async def test_disallowed_tools_do_not_run_whatever_the_mode(user: User):
    session_id = await user.create("BYPASS_PERMISSIONS", disallowed_tools=["Bash(touch:*)"])
    turn = await user.run(
        session_id, prompt(use("Bash", command="true; touch ran"), use("Glob", pattern="*"), say("x"))
    )
    assert state_name(turn) == "SUCCEEDED"
    calls = (
        await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
    ).tool_calls
    assert calls[0].state == session_pb2.ToolCall.DENIED
    assert "ran" not in calls[1].result.content.text


async def test_questions_of_all_sessions_are_listed(user: User, stranger: User):
    sessions = [await user.create("DEFAULT") for _ in range(2)]
    for session_id in sessions:
        turn = await user.send(session_id, prompt(use("Bash", command="ls"), say("x")))
        await user.asked(session_id, turn.id)
    request = permission_service_pb2.ListPermissionRequestsRequest(
        states=[session_pb2.PermissionRequest.PENDING]
    )
    found = await user.call(user.permissions.ListPermissionRequests, request)
    assert {item.session_id for item in found.permission_requests} == set(sessions)
    none = await stranger.call(stranger.permissions.ListPermissionRequests, request)
    assert not none.permission_requests
