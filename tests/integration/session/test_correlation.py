"""A request id reaches the executor: all that is done for a message can be found by it."""

from __future__ import annotations

import pytest
import structlog

from aiagent.session.v1 import permission_service_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from services.session.store import tables
from tests.databases import Copy

from .driving import world
from .scripted_executor import ScriptedExecutor
from .serving import greet, serving

pytestmark = pytest.mark.integration
METHODS = {"RunTurn", "AckTurn", "DecideTool", "HeartbeatTurn"}


async def test_calls_to_the_executor_carry_the_request_id_of_the_message(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with serving(databases, valkey, tmp_path_factory.mktemp("correlation")) as api:
        client = api.client()
        session = await client.session()
        metadata = (*client.sessions._metadata, ("x-request-id", "from-the-client"))
        request = pb.SendMessageRequest(session_id=session.id, message="ask", request_id="an-idempotency-key")
        turn = await client.sessions.SendMessage(request, metadata=metadata)
        assert (await api.rows(tables.turns, session.id))[0].request_id == "from-the-client"
        waited = await client.wait(turn)
        (question,) = waited.permission_requests

        async def heartbeat() -> bool:
            return "HeartbeatTurn" in api.executor.request_ids

        await api.until(heartbeat)
        await client.permissions.ResolvePermission(
            permission_service_pb2.ResolvePermissionRequest(
                session_id=session.id, permission_request_id=question.id, decision="ALLOW_ONCE"
            )
        )
        await client.wait(turn)
        assert {method: api.executor.request_ids[method] for method in METHODS} == {
            method: {"from-the-client"} for method in METHODS
        }


async def test_a_turn_without_a_request_id_goes_by_its_own(session_database) -> None:
    executor = ScriptedExecutor(greet)
    async with world(session_database, executor) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (await it.pool()).wake(session_id)
        await it.ended(turn_id)
        assert executor.request_ids["RunTurn"] == {str(turn_id)}


async def test_the_drivers_log_names_session_turn_and_request(session_database) -> None:
    executor = ScriptedExecutor(greet)
    executor.break_after = 1
    async with world(session_database, executor) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            (await it.pool()).wake(session_id)
            await it.ended(turn_id)
        (broke,) = [line for line in logs if line["event"] == "item stream broke"]
        assert broke["session_id"] == str(session_id)
        assert (broke["turn_id"], broke["request_id"]) == (str(turn_id), str(turn_id))
