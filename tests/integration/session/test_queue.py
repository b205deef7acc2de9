"""A queued turn is told its place in the whole installation, whichever replica is asked."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from aiagent.session.v1 import session_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from tests.databases import Copy

from .serving import Client, Serving, serving

pytestmark = pytest.mark.integration


async def position(client: Client, turn: session_pb2.Turn) -> int:
    request = pb.GetTurnRequest(session_id=turn.session_id, turn_id=turn.id)
    found = await client.sessions.GetTurn(request)
    assert session_pb2.Turn.State.Name(found.state) == "QUEUED"
    listed = await client.sessions.ListTurns(pb.ListTurnsRequest(session_id=turn.session_id))
    assert [other.queue_position for other in listed.turns if other.id == turn.id] == [found.queue_position]
    wait = pb.WaitTurnRequest(session_id=turn.session_id, turn_id=turn.id, wait_seconds=0)
    assert (await client.sessions.WaitTurn(wait)).turn.queue_position == found.queue_position
    return int(found.queue_position)


async def test_places_count_over_replicas_and_tenants(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with AsyncExitStack() as stack:
        replicas: list[Serving] = []
        for name in ("one", "two"):
            directory = tmp_path_factory.mktemp(name)
            replicas.append(await stack.enter_async_context(serving(databases, valkey, directory)))
        for replica in replicas:
            replica.executor.draining = True
        people = [replicas[0].client(), replicas[1].client(), replicas[0].client()]
        first, second, third = [(await person.session()).id for person in people]
        turns = [
            await people[0].send(first),
            await people[1].send(second),
            # Behind its own session's turn, it does not wait for a place yet: nobody stands behind it.
            await people[0].send(first),
            await people[2].send(third),
        ]
        assert [turn.queue_position for turn in turns] == [0, 1, 2, 2]
        for replica in replicas:
            asking = [replica.client(person.caller) for person in people]
            places = [
                await position(asking[index], turn) for index, turn in zip((0, 1, 0, 2), turns, strict=True)
            ]
            assert places == [0, 1, 2, 2]
