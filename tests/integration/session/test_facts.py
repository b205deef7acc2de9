"""What other services are told: each fact of the log once, with it or not at all, and on to the broker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from aiagent.events.v1 import session_event_pb2
from aiagent.events.v1.session_fact_pb2 import SessionFact
from aiagent.session.v1 import permission_service_pb2, session_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.ports import free_port
from services.kernel.errors import unavailable
from services.session.bootstrap import migrate
from services.session.settings import SessionSettings
from services.session.store import facts, tables
from tests.kafka_broker import LocalBroker, read

from .driving import World, world
from .scripted_executor import Attempt, ScriptedExecutor
from .serving import serving

pytestmark = pytest.mark.integration
TOLD = {
    "turn_ended": "turn_ended",
    "tool_decision": "permission_decided",
    "permission_resolved": "permission_resolved",
}
"""Kinds of the log that are facts, and what they are called there."""


async def use_two_tools(attempt: Attempt) -> None:
    attempt.started()
    for call, tool in (("t1", "Read"), ("t2", "Bash")):
        attempt.ask(call, tool, {"command": "make"})
        decision = await attempt.decided(call)
        attempt.result(call, "made", is_error=not decision.allow)
    attempt.end("SUCCEEDED")


async def facts_of(database: Any, session_id: UUID) -> list[SessionFact]:
    """What stands in the outbox about a session, in the order of its log."""
    query = sa.select(tables.outbox).where(tables.outbox.c.key == str(session_id))
    async with database.system() as connection:
        rows = (await connection.execute(query)).all()
    found = []
    for row in rows:
        fact = SessionFact.FromString(row.payload)
        assert (fact.event_id, fact.organization_id) == (str(row.id), str(row.organization_id))
        assert (fact.session_id, row.topic) == (str(session_id), "session-facts")
        found.append(fact)
    return sorted(found, key=lambda fact: fact.sequence)


async def agree(it: World, session_id: UUID) -> list[SessionFact]:
    """Makes sure that each entry that is a fact was told once, and nothing else."""
    found = await facts_of(it.database, session_id)
    log = [(sequence, TOLD[kind]) for sequence, kind, _ in await it.log(session_id) if kind in TOLD]
    assert [(fact.sequence, fact.WhichOneof("kind")) for fact in found] == log
    (session,) = await it.rows(tables.sessions, session_id)
    assert {fact.user_id for fact in found} == {str(session.user_id)}
    return found


async def test_a_turn_tells_its_decisions_and_its_end(session_database):
    async with world(session_database, ScriptedExecutor(use_two_tools)) as it:
        session_id = await it.session(allowed_tools=["Read"], permission_timeout=timedelta(seconds=0.2))
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await it.ended(turn_id)
        told = await agree(it, session_id)
        assert {fact.turn_id for fact in told} == {str(turn_id)}
        read_decided, expired, bash_decided, ended = told
        kind = session_event_pb2.ToolDecision
        assert read_decided.permission_decided.decision.source == kind.ALLOWED_TOOLS
        assert expired.permission_resolved.state == "EXPIRED"
        assert bash_decided.permission_decided.decision.decision == kind.DENY
        assert bash_decided.permission_decided.decision.source == kind.EXPIRY
        (_, call) = await it.rows(tables.tool_calls, session_id)
        assert bash_decided.permission_decided.input_hash == call.input_hash
        turn = await it.turn(turn_id)
        assert ended.turn_ended.state == turn.state == "SUCCEEDED"
        assert ended.turn_ended.usage.output_tokens == turn.output_tokens
        assert ended.turn_ended.cost_usd == pytest.approx(float(turn.cost_usd))


async def test_a_transaction_that_fails_tells_nothing(session_database, monkeypatch):
    add = facts.OutboxWriter.add_all
    failed = []

    async def fail_once(self, connection, messages):
        await add(self, connection, messages)
        if messages and not failed:
            failed.append(len(messages))
            raise unavailable("DATABASE_UNAVAILABLE", "the connection broke", retry_after_seconds=1)

    monkeypatch.setattr(facts.OutboxWriter, "add_all", fail_once)
    async with world(session_database, ScriptedExecutor(use_two_tools)) as it:
        session_id = await it.session(allowed_tools=["Read", "Bash"])
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await it.ended(turn_id)
        assert failed == [1]
        assert len(await agree(it, session_id)) == 3


async def test_a_service_publishes_what_people_do(databases, valkey, tmp_path):
    broker = LocalBroker(free_port())
    await broker.start()
    settings = {"kafka_url": f"kafka://127.0.0.1:{broker.port}", "kafka_local_broker": True}
    try:
        urls = {
            f"session_{name}database_url": databases.url(f"session_{role}")
            for name, role in (("", "application"), ("system_", "system"), ("owner_", "owner"))
        }
        for outcome in ("was created", "is there"):
            line = await migrate(SessionSettings(_env_file=None, **urls, **settings))
            assert line.endswith(f"; topic session-facts {outcome}")
        async with serving(databases, valkey, tmp_path, **settings) as running:
            person = running.client()
            session = await person.session()
            question = await person.question(session.id)
            queued = await person.send(session.id, "greet")
            answer = permission_service_pb2.ResolvePermissionRequest(
                session_id=session.id,
                permission_request_id=question.id,
                decision=permission_service_pb2.ResolvePermissionRequest.DENY,
                reason="not today",
            )
            await person.permissions.ResolvePermission(answer)
            assert (await person.wait(queued)).turn.state == session_pb2.Turn.SUCCEEDED
            await person.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
            written = await facts_of(running.database, UUID(session.id))
            records = await read(broker.broker, "session-facts", [fact.event_id for fact in written])
    finally:
        broker.kill()
    # Earlier tests of this database have left facts too.
    records = [record for record in records if record.key == session.id.encode()]
    told = [SessionFact.FromString(record.value) for record in records]
    assert [fact.WhichOneof("kind") for fact in told] == [
        "permission_resolved",
        "permission_decided",
        "turn_ended",
        "turn_ended",
    ]
    assert told[0].permission_resolved.user_id == str(person.caller.user_id)
    assert told[0].permission_resolved.reason == "not today"
    assert told[1].permission_decided.decision.source == session_event_pb2.ToolDecision.PERSON
    assert len({record.partition for record in records}) == 1
