"""Watchers that have stopped reading: they cost little, and slow nobody beside them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import httpx
import psutil
import pytest

from aiagent.session.v1 import session_service_pb2
from tests.running_suite import RunningSuite

from .conftest import OPTIONS, User, state_name
from .script import prompt, say
from .watching import Watcher

pytestmark = pytest.mark.e2e

OF_EACH_KIND = 24
MESSAGES = 8
MESSAGE_CHARACTERS = 250_000
"""As large as a text in the log can be: those that are larger lie beside it."""
COST_BYTES = 2 * 1024 * 1024
"""What a watcher that has stopped reading may cost, when all that it was sent is that large."""
PROMPT_SECONDS = 10.0


async def with_history(user: User) -> str:
    """A session whose log is larger than what lies between the service and a client."""
    session_id = await user.create()
    text = prompt(say("Noted."), text="x" * MESSAGE_CHARACTERS)
    turns = [await user.send(session_id, text) for _ in range(MESSAGES)]
    assert state_name(await user.wait(session_id, turns[-1].id)) == "SUCCEEDED"
    return session_id


@asynccontextmanager
async def deaf_over_http(user: User, port: int, session_id: str) -> AsyncIterator[None]:
    """A client of the JSON interface that reads the head of its answer, and nothing more."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        # On loopback, with its large segments, the kernel would keep megabytes for the client.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        head = [
            f"GET /api/v1/sessions/{session_id}/watch HTTP/1.1",
            "host: localhost",
            *(f"{key}: {value}" for key, value in user.headers.items()),
        ]
        await loop.sock_sendall(connection, ("\r\n".join(head) + "\r\n\r\n").encode())
        assert await loop.sock_recv(connection, 15) == b"HTTP/1.1 200 OK"
        yield


@asynccontextmanager
async def deaf_over_grpc(user: User, target: str, session_id: str) -> AsyncIterator[None]:
    """A client of gRPC, on a connection of its own, that never asks for a message."""
    # Without the probe the client's window stays at what HTTP/2 begins with.
    options = [*OPTIONS, ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        watching = User(user.base_url, channel, user.email, user.access_token)
        call = watching.watch(session_id)
        await call.initial_metadata()
        yield
        call.cancel()


async def paused(suite: RunningSuite) -> int:
    """How often Envoy has stopped taking from a stream of the session service because its client took nothing."""
    transport = httpx.AsyncHTTPTransport(uds=str(suite.state_dir / "run" / "envoy.sock"))
    name = "cluster.session.upstream_flow_control_paused_reading_total"
    async with httpx.AsyncClient(transport=transport, base_url="http://envoy") as admin:
        answer = await admin.get("/stats", params={"filter": name})
    return int(answer.text.rsplit(":", 1)[1])


def memory_bytes(suite: RunningSuite) -> int:
    """What the services and Envoy hold."""
    assert suite.process is not None
    envoy = [process for process in suite.processes() if process.name() == "envoy"]
    return sum(int(process.memory_full_info().uss) for process in (psutil.Process(suite.process.pid), *envoy))


async def test_watchers_that_never_read_slow_nobody_and_cost_little(
    suite: RunningSuite, user: User, stranger: User
):
    session_id, elsewhere = await with_history(user), await stranger.create()
    reading = Watcher(user, session_id)
    await reading.follow()
    before, paused_before = memory_bytes(suite), await paused(suite)
    async with AsyncExitStack() as deaf:
        for _ in range(OF_EACH_KIND):
            await deaf.enter_async_context(deaf_over_http(user, suite.port, session_id))
            await deaf.enter_async_context(deaf_over_grpc(user, suite.grpc_target, session_id))
        # Where they can fill a connection together, not all of them come to this.
        async with asyncio.timeout(20):
            while await paused(suite) - paused_before < OF_EACH_KIND:
                await asyncio.sleep(0.05)

        async with asyncio.timeout(PROMPT_SECONDS):
            turn, other = await asyncio.gather(
                user.run(session_id, prompt(say("Here I am."))),
                stranger.run(elsewhere, prompt(say("And I."))),
            )
            await reading.follow()
        assert (state_name(turn), state_name(other)) == ("SUCCEEDED", "SUCCEEDED")
        assert "Here I am." in reading.texts.values()
        events = await user.call(
            user.sessions.ListEvents,
            session_service_pb2.ListEventsRequest(
                session_id=session_id, after_sequence=reading.cursor.sequence - 1
            ),
        )
        assert [event.sequence for event in events.events] == [reading.cursor.sequence]
        cost = memory_bytes(suite) - before
    assert cost < 2 * OF_EACH_KIND * COST_BYTES, f"{cost / 2**20:.0f} MiB"
