"""WatchSession for those who open many streams, and for those who do not read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from tests.databases import Copy

from .serving import Client, Serving, reason, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def narrow(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serving]:
    """A session service that lets a user have one stream, and does not wait for long until it is read."""
    async with serving(
        databases,
        valkey,
        tmp_path_factory.mktemp("narrow"),
        session_max_watches_per_user=1,
        session_watch_unread_seconds=0.5,
    ) as running:
        yield running


def watch(client: Client, session_id: str, **fields: Any) -> Any:
    return client.sessions.WatchSession(pb.WatchSessionRequest(session_id=session_id, **fields))


async def admitted(client: Client, session_id: str) -> bool:
    """Whether the user may open another stream."""
    call = watch(client, session_id)
    try:
        return await call.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        return False
    finally:
        call.cancel()


async def keeping(call: Any, responses: list[pb.WatchSessionResponse]) -> AsyncIterator[None]:
    """Reads a stream, and keeps what it gets."""
    async for response in call:
        responses.append(response)
        yield


async def test_a_user_has_so_many_streams_and_no_more(narrow: Serving):
    client, other = narrow.client(), narrow.client()
    session_id = (await client.session()).id
    await client.talk(session_id)
    call = watch(client, session_id)
    await call.read()
    assert await reason(watch(client, session_id)) == "RESOURCE_EXHAUSTED TOO_MANY_WATCHES"
    # Whoever waits for a turn takes a place, too, and is refused before the message is taken.
    ask = pb.QuerySessionRequest(session_id=session_id, message="greet")
    assert await reason(client.sessions.QuerySession(ask)) == "RESOURCE_EXHAUSTED TOO_MANY_WATCHES"
    (turn,) = (await client.sessions.ListTurns(pb.ListTurnsRequest(session_id=session_id))).turns
    wait = pb.WaitTurnRequest(session_id=session_id, turn_id=turn.id)
    assert await reason(client.sessions.WaitTurn(wait)) == "RESOURCE_EXHAUSTED TOO_MANY_WATCHES"
    wait.wait_seconds = 0
    assert (await client.sessions.WaitTurn(wait)).turn == turn
    # Other users have places of their own, and other calls are not concerned.
    theirs = (await other.session()).id
    assert await reason(watch(other, theirs, cursor={"sequence": 10**6})) == "INVALID_ARGUMENT CURSOR_AHEAD"
    await client.send(session_id, "greet")

    call.cancel()
    await narrow.until(lambda: admitted(client, session_id))


async def test_a_stream_that_nobody_reads_ends_and_can_be_resumed(narrow: Serving):
    client = narrow.client()
    session_id = (await client.session()).id
    for _ in range(4):
        await client.talk(session_id, "greet " + "x" * 250_000)
    # Without the probe the client's window stays at what HTTP/2 begins with.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{narrow.service.port}", options=options) as channel:
        unread = watch(narrow.client(client.caller, channel=channel), session_id)
        await unread.initial_metadata()
        # Its place is free before anybody has heard of its end.
        await narrow.until(lambda: admitted(client, session_id))
        responses: list[pb.WatchSessionResponse] = []
        assert await reason(keeping(unread, responses)) == "RESOURCE_EXHAUSTED WATCHER_TOO_SLOW"
    async for _ in keeping(
        watch(client, session_id, cursor=responses[-1].cursor, until_idle=True), responses
    ):
        pass
    sequences = [
        item.event.sequence for response in responses for item in response.items if item.HasField("event")
    ]
    assert sequences == [event.sequence for event in await client.events(session_id)]
