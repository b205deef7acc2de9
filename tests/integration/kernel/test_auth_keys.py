"""The keys of access tokens come from whichever replica of auth is there."""

from __future__ import annotations

from typing import Any

import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import auth_service_pb2_grpc, user_pb2
from services.kernel.grpc import auth_channel, key_set
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.testing import running_server

pytestmark = pytest.mark.integration


class Keys(auth_service_pb2_grpc.AuthServiceServicer):
    """Auth, as far as its keys go."""

    async def GetJwks(self, request: pb.GetJwksRequest, context: Any) -> pb.GetJwksResponse:
        return pb.GetJwksResponse(keys=[user_pb2.JsonWebKey(kid="1")])


async def test_a_replica_of_auth_that_is_away_keeps_nobody_out() -> None:
    def register(server: Any) -> None:
        auth_service_pb2_grpc.add_AuthServiceServicer_to_server(Keys(), server)

    policies = {
        f"/aiagent.auth.v1.AuthService/{method.name}": PUBLIC
        for method in pb.DESCRIPTOR.services_by_name["AuthService"].methods
    }
    async with running_server(register=[register], policies=policies, domain="auth.aiagent") as (server, _):
        # Nobody listens at the first.
        request = pb.GetJwksRequest()
        channel = auth_channel(f"127.0.0.1:1,127.0.0.1:{server.port}", request)
        try:
            document = await key_set(auth_service_pb2_grpc.AuthServiceStub(channel).GetJwks, request)()
        finally:
            await channel.close()
    assert [key["kid"] for key in document["keys"]] == ["1"]
