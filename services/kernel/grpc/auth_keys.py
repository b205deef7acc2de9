"""The keys of access tokens, as auth publishes them to every service. The generated code is handed in: the kernel knows
no contract."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from services.kernel.grpc.channel import open_channel, replicas
from services.kernel.identity import JwksDocument
from services.kernel.settings import targets

_SECONDS = 2.0


def auth_channel(addresses: str, request: Message) -> grpc.aio.Channel:
    """Opens a channel to all replicas of auth, of which one that answers is enough; only its keys are asked for there.

    Args:
        addresses: as in the settings.
        request: the one that is sent; the services of its file are repeated as a whole.
    """
    return open_channel(
        replicas(targets(addresses)),
        signer=None,
        audience="auth",
        balanced=True,
        repeatable=[service.full_name for service in request.DESCRIPTOR.file.services_by_name.values()],
    )


def key_set(
    get_jwks: Callable[..., Awaitable[Message]], request: Message
) -> Callable[[], Awaitable[JwksDocument]]:
    """Returns what reads the keys of access tokens.

    Args:
        get_jwks: the method of auth's stub, on a channel of `auth_channel`.
        request: what it is sent.
    """

    async def fetch() -> JwksDocument:
        answer = await get_jwks(request, timeout=_SECONDS, wait_for_ready=True)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    return fetch
