"""The auth service, of which only the keys of access tokens are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
from google.protobuf import json_format

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from services.kernel.grpc import open_channel, replicas
from services.kernel.identity import JwksDocument
from services.kernel.settings import targets


def auth_channel(addresses: str) -> grpc.aio.Channel:
    """Opens a channel to all replicas of auth, of which one that answers is enough; `addresses` as in the settings."""
    return open_channel(
        replicas(targets(addresses)),
        signer=None,
        audience="auth",
        balanced=True,
        repeatable=[auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"].full_name],
    )


def key_set(channel: grpc.aio.Channel) -> Callable[[], Awaitable[JwksDocument]]:
    """Reads the keys of access tokens."""
    stub = auth_service_pb2_grpc.AuthServiceStub(channel)

    async def fetch() -> JwksDocument:
        answer = await stub.GetJwks(auth_service_pb2.GetJwksRequest(), timeout=2.0, wait_for_ready=True)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    return fetch
