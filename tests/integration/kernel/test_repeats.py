"""A call whose connection breaks after it was sent is made again only where that was said to be harmless."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from services.kernel.grpc import PUBLIC, open_channel
from services.kernel.testing import running_server
from tests.chaos.proxy import Proxy
from tests.integration.kernel.servicers import POLICIES, SESSION_ID, Sessions

pytestmark = pytest.mark.integration
SERVICE = "aiagent.session.v1.SessionService"


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, 1),
        ({"balanced": True}, 1),
        ({"balanced": True, "repeatable": ["aiagent.session.v1.TranscriptService"]}, 1),
        ({"repeatable": [SERVICE]}, 2),
        ({"balanced": True, "repeatable": [SERVICE]}, 2),
    ],
)
async def test_a_call_that_may_have_been_carried_out(options: dict[str, Any], made: int) -> None:
    sessions = Sessions()
    calls: list[Any] = []

    async def cut_the_first(request: Any, _context: Any) -> None:
        calls.append(request)
        if len(calls) == 1:
            assert proxy.cut(0.999) == 1

    sessions.behave = cut_the_first
    policies = dict.fromkeys(POLICIES, PUBLIC)
    async with running_server(register=[sessions.register], policies=policies) as (server, _):
        proxy = Proxy(server.port)
        await proxy.start()
        try:
            async with open_channel(proxy.target, signer=None, audience="session", **options) as channel:
                call = SessionServiceStub(channel).GetSession(
                    pb.GetSessionRequest(session_id=SESSION_ID), timeout=10
                )
                if made == 1:
                    with pytest.raises(grpc.aio.AioRpcError) as failed:
                        await call
                    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
                else:
                    assert (await call).id == SESSION_ID
        finally:
            await proxy.stop()
    assert len(calls) == made
