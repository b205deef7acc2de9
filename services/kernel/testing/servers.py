"""A real server on a free port of loopback, and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import grpc

from services.kernel.grpc.authentication import MethodPolicy, UserVerifier
from services.kernel.grpc.server import MAX_MESSAGE_BYTES, KernelServer, Register, build_server
from services.kernel.identity.service_tokens import ServiceTokenVerifier


@asynccontextmanager
async def running_server(
    *,
    register: Sequence[Register],
    policies: Mapping[str, MethodPolicy],
    domain: str = "test.aiagent",
    users: UserVerifier | None = None,
    services: ServiceTokenVerifier | None = None,
) -> AsyncIterator[tuple[KernelServer, grpc.aio.Channel]]:
    """Runs a server as in production; yields it and a plain channel (see `build_server` for the arguments)."""
    server = build_server(
        listen="127.0.0.1:0",
        domain=domain,
        register=register,
        policies=policies,
        users=users,
        services=services,
    )
    port = await server.start()
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    try:
        yield server, channel
    finally:
        await channel.close()
        await server.stop()
