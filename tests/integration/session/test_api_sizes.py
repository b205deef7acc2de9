"""Large histories arrive: no response outgrows what a client takes, and nothing is left out for it."""

from __future__ import annotations

import pytest

from aiagent.session.v1 import session_service_pb2 as pb

from .scripted_executor import Attempt
from .serving import Client, Serving

pytestmark = pytest.mark.integration

CALLS = 60
RESULT = "x" * 200_000
FOUR_MIB = 4 * 1024 * 1024
"""What clients of gRPC take at once unless told otherwise."""


async def read_much(attempt: Attempt) -> None:
    attempt.started()
    for number in range(CALLS):
        attempt.ask(f"t{number}", "Read", {"file_path": "a.txt"})
        await attempt.decided(f"t{number}")
        attempt.result(f"t{number}", RESULT)
    attempt.end("SUCCEEDED")


@pytest.fixture
async def reader(api: Serving) -> tuple[Client, str]:
    """Somebody with a session whose agent has read much."""
    client = api.client()
    api.plays["read"] = read_much
    session = await client.session(name="large")
    await client.talk(session.id, "read")
    return client, session.id


async def test_a_watcher_of_a_large_history_gets_it_in_pieces(reader: tuple[Client, str]):
    client, session_id = reader
    sequences: list[int] = []
    async for response in client.sessions.WatchSession(
        pb.WatchSessionRequest(session_id=session_id, until_idle=True)
    ):
        assert response.ByteSize() < FOUR_MIB
        sequences += [item.event.sequence for item in response.items if item.HasField("event")]
        assert not sequences or response.cursor.sequence == sequences[-1]
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) > 3 * CALLS


@pytest.mark.parametrize("page_size", [0, 7, 1000])
async def test_pages_of_large_resources_are_shorter_and_leave_nothing_out(
    reader: tuple[Client, str], page_size: int
):
    client, session_id = reader
    calls: list[str] = []
    token, pages = "", 0
    while True:
        request = pb.ListToolCallsRequest(session_id=session_id, page_size=page_size, page_token=token)
        response = await client.sessions.ListToolCalls(request)
        assert response.ByteSize() < FOUR_MIB
        calls += [call.id for call in response.tool_calls]
        token, pages = response.next_page_token, pages + 1
        if not token:
            break
    assert calls == [f"t{number}" for number in range(CALLS)]
    assert pages >= CALLS * len(RESULT) / FOUR_MIB


async def test_events_page_by_size_too(reader: tuple[Client, str]):
    client, session_id = reader
    sequences: list[int] = []
    token = ""
    while True:
        request = pb.ListEventsRequest(
            session_id=session_id, page_size=1000, page_token=token, after_sequence=3
        )
        response = await client.sessions.ListEvents(request)
        sequences += [event.sequence for event in response.events]
        token = response.next_page_token
        if not token:
            break
    assert sequences == list(range(4, sequences[-1] + 1))


async def test_a_query_with_many_results_is_answered(api: Serving):
    client = api.client()
    api.plays["read"] = read_much
    session = await client.session(name="large")
    answer = await client.sessions.QuerySession(pb.QuerySessionRequest(session_id=session.id, message="read"))
    assert 0 < len(answer.tool_calls) < CALLS
    assert answer.turn.state == answer.turn.SUCCEEDED
