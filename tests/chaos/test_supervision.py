"""The supervisor starts again whatever dies, of every kind, and the suite serves as before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from aiagent.session.v1 import agent_options_pb2, session_service_pb2
from tests.e2e.conftest import PASSWORD, User
from tests.e2e.script import prompt, say, use
from tests.running_suite import RunningSuite

from .calling import OPTIONS, Statuses, patiently
from .plan import Fault
from .proxy import Proxy
from .striking import Striker
from .victims import SUPERVISED

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module")
async def own_suite() -> AsyncIterator[RunningSuite]:
    """A suite in processes, to be killed piece by piece."""
    folder = Path(tempfile.mkdtemp(prefix="aiagent-chaos-"))
    suite = RunningSuite(folder / "state", arguments=["--processes", "--replicas", "session=2"])
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module")
async def member(own_suite: RunningSuite) -> AsyncIterator[User]:
    """A user from before the first fault."""
    async with grpc.aio.insecure_channel(own_suite.grpc_target, options=OPTIONS) as channel:
        user = User(own_suite.base_url, channel)
        await user.sign_up()
        yield user


@pytest.mark.parametrize("how", ["kill", "term"])
@pytest.mark.parametrize("kind", SUPERVISED)
async def test_what_dies_is_started_again(own_suite: RunningSuite, member: User, kind: str, how: str):
    striker = Striker(own_suite, Proxy(own_suite.port), list, {"session": 2})
    # PostgreSQL's TERM waits for its clients to leave, which are pools; its fast stop does not.
    how = "int" if (kind, how) == ("postgres", "term") else how
    struck = await striker.strike(Fault(0.0, kind, how, 0.0))
    assert struck is not None
    assert struck.back_seconds is not None and struck.back_seconds > 0

    async def call(stub: Any, request: Any) -> Any:
        return await patiently(member, Statuses(), "-", stub, request, seconds=30)

    login = auth_service_pb2.LoginRequest(email=member.email, password=PASSWORD)
    tokens = await call(auth_service_pb2_grpc.AuthServiceStub(member.channel).Login, login)
    member.access_token = tokens.access_token
    create = session_service_pb2.CreateSessionRequest(request_id=uuid4().hex)
    create.sdk_options.permission_mode = agent_options_pb2.AgentOptions.BYPASS_PERMISSIONS
    session = await call(member.sessions.CreateSession, create)
    text = prompt(use("Bash", command="echo here"), say("all is well"))
    send = session_service_pb2.SendMessageRequest(session_id=session.id, message=text, request_id=uuid4().hex)
    turn = await call(member.sessions.SendMessage, send)
    wait = session_service_pb2.WaitTurnRequest(session_id=session.id, turn_id=turn.id, wait_seconds=5)
    for _ in range(6):
        turn = (await call(member.sessions.WaitTurn, wait)).turn
        if turn.HasField("end_time"):
            break
    assert turn.result.text == "all is well"
