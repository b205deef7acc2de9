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
    """A session service that lets a user have two streams."""
    directory = tmp_path_factory.mktemp("narrow")
    async with serving(databases, valkey, directory, session_max_watches_per_user=2) as running:
        yield running


def watch(client: Client, session_id: str, **fields: Any) -> Any:
    return client.sessions.WatchSession(pb.WatchSessionRequest(session_id=session_id, **fields))


async def test_a_user_has_so_many_streams_and_no_more(narrow: Serving):
    client, other = narrow.client(), narrow.client()
    session_id = (await client.session()).id
    await client.talk(session_id)
    calls = [watch(client, session_id) for _ in range(2)]
    for call in calls:
        await call.read()
    assert await reason(watch(client, session_id)) == "RESOURCE_EXHAUSTED TOO_MANY_WATCHES"
    # Other users have places of their own, and other calls are not concerned.
    theirs = (await other.session()).id
    await other.talk(theirs)
    assert await reason(watch(other, theirs, cursor={"sequence": 10**6})) == "INVALID_ARGUMENT CURSOR_AHEAD"
    await client.talk(session_id)

    calls[0].cancel()

    async def admitted() -> bool:
        call = watch(client, session_id)
        try:
            return await call.read() is not grpc.aio.EOF
        except grpc.aio.AioRpcError:
            return False
        finally:
            call.cancel()

    await narrow.until(admitted)
