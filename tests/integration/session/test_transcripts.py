"""Transcripts over the wire: whose they are, who may write, and what is read back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from aiagent.session.v1 import session_service_pb2
from aiagent.session.v1 import transcript_service_pb2 as pb
from aiagent.session.v1.transcript_service_pb2_grpc import TranscriptServiceStub
from deploy.local.servers import Valkey
from services.kernel.identity import ServiceTokenSigner
from services.session.store import tables
from tests.databases import Copy

from .serving import reason
from .transcript_store import Store, open_store

pytestmark = pytest.mark.integration

SUPERSEDED = "FAILED_PRECONDITION ATTEMPT_SUPERSEDED"
NO_TOKEN = "PERMISSION_DENIED TRANSCRIPT_TOKEN_INVALID"


def entry(**content: Any) -> tuple[str, str]:
    uuid = str(uuid4())
    return uuid, json.dumps({"type": "user", "uuid": uuid, **content})


@pytest.fixture(scope="module")
async def store(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Store]:
    """A session service, called by an executor."""
    async with open_store(databases, valkey, tmp_path_factory.mktemp("transcripts")) as made:
        yield made


async def test_what_was_appended_is_read_in_order_with_positions(store: Store):
    fence = await store.attempt()
    first, second, third = entry(n=1), entry(n=2), entry(n=3)
    assert (await store.append(fence, first)).position == 1
    assert (await store.append(fence, second, subpath="subagents/agent-1")).position == 2
    assert (await store.append(fence, third)).position == 3
    assert await store.read(fence) == [
        (1, "", *first),
        (2, "subagents/agent-1", *second),
        (3, "", *third),
    ]


async def test_a_repeated_uuid_is_dropped_and_leaves_no_gap(store: Store):
    fence = await store.attempt()
    first, second, third = entry(n=1), entry(n=2), entry(n=3)
    await store.append(fence, first, second, first)
    again = (first[0], '{"other": true}')
    assert (await store.append(fence, again, second, third)).position == 3
    assert [row[3] for row in await store.read(fence)] == [first[1], second[1], third[1]]
    assert [row[0] for row in await store.read(fence)] == [1, 2, 3]


async def test_an_older_attempts_late_write_is_refused(store: Store):
    old = await store.attempt()
    await store.append(old, entry(n=1))
    await store.superseded(old.session_id)
    new = await store.begun(old.session_id, 2)
    assert new.attempt == 2
    before = await store.read(new)
    assert await reason(store.append(old, entry(n=2))) == SUPERSEDED
    assert await reason(store.stream(old)) == SUPERSEDED
    assert await store.read(new) == before
    assert (await store.append(new, entry(n=3))).position == 2


async def test_an_earlier_turns_late_write_is_refused(store: Store):
    client = store.api.client()
    session = await client.session()
    await client.talk(session.id)
    old = await store.begun(session.id, 1)
    await store.append(old, entry(n=1))  # After the turn, and before the next: the CLI writes when it ends.
    await client.send(session.id, "stay")
    new = await store.begun(session.id, 2)
    assert await reason(store.append(old, entry(n=2))) == SUPERSEDED
    assert store.api.executor.runs[-1].request.transcript_position == 1
    assert (await store.append(new, entry(n=2))).position == 2


async def test_the_token_is_of_this_attempt_or_refused(store: Store):
    fence, other = await store.attempt(), await store.attempt()
    signer = ServiceTokenSigner("session", store.keys.private["session"])
    changed = [
        {"token": other.token},
        {"token": "nonsense"},
        {"token": signer.sign("session")},
        {"attempt": 2},
        {"turn_id": other.turn_id},
        {"session_id": other.session_id},
    ]
    for change in changed:
        wrong = pb.TranscriptFence()
        wrong.CopyFrom(fence)
        for name, value in change.items():
            setattr(wrong, name, value)
        assert await reason(store.append(wrong, entry(n=1))) == NO_TOKEN, change
        assert await reason(store.stream(wrong)) == NO_TOKEN, change
    assert await store.read(fence) == []
    assert await store.read(other) == []


async def test_only_executors_may_call(store: Store):
    fence = await store.attempt()
    request = pb.ReadTranscriptRequest(fence=fence, cli_session_id=fence.session_id)
    refused = "PERMISSION_DENIED CALLER_NOT_ALLOWED"
    assert await reason(TranscriptServiceStub(store.foreign).ReadTranscript(request)) == refused
    client = store.api.client()
    stub = TranscriptServiceStub(store.api.channel)
    token = store.api.tokens.token(client.caller)
    calls = stub.ReadTranscript(request, metadata=(("authorization", f"Bearer {token}"),))
    assert await reason(calls) == refused
    assert await reason(stub.ReadTranscript(request)) == "UNAUTHENTICATED TOKEN_MISSING"


async def test_escapes_and_large_entries_come_back_as_they_were(store: Store):
    fence = await store.attempt()
    hostile = entry(text="\u0000 \ud800 ünï \U0001f600 \u2028")
    text = '{"uuid": "' + "x" * (16 * 1024 * 1024 - 12) + '"}'
    assert len(text) == 16 * 1024 * 1024
    large = (str(uuid4()), text)
    await store.append(fence, hostile)
    await store.append(fence, large)
    rows = await store.read(fence)
    assert [row[3] for row in rows] == [hostile[1], large[1]]
    assert json.loads(rows[0][3])["text"] == "\u0000 \ud800 ünï \U0001f600 \u2028"


async def test_a_long_conversation_is_read_in_pages(store: Store):
    fence = await store.attempt()
    entries = [entry(n=number, text="x" * 4000) for number in range(1200)]
    await store.append(fence, *entries[:900])
    await store.append(fence, *entries[900:])
    assert [row[2] for row in await store.read(fence)] == [uuid for uuid, _ in entries]


@pytest.mark.parametrize("subpath", ["../x", "/etc/passwd", "a//b", "a/../b", ".hidden", "a\n"])
async def test_a_subpath_stays_inside(store: Store, subpath: str):
    fence = await store.attempt()
    assert await reason(store.append(fence, entry(), subpath=subpath)) == "INVALID_ARGUMENT INVALID_REQUEST"


async def test_transcripts_go_with_their_session(store: Store):
    client = store.api.client()
    session = await client.session()
    await client.talk(session.id)
    fence = await store.begun(session.id, 1)
    await store.append(fence, entry())
    await client.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(session_id=session.id))
    assert await reason(store.append(fence, entry())) == "NOT_FOUND SESSION_NOT_FOUND"

    async def gone() -> bool:
        return not await store.api.rows(tables.transcript_entries, session.id)

    await store.api.until(gone)


async def test_callers_have_no_right_to_transcripts(store: Store):
    fence = await store.attempt()
    await store.append(fence, entry())
    caller = store.api.client().caller
    with pytest.raises(Exception, match="permission denied"):
        async with store.api.database.tenant(caller) as connection:
            await connection.execute(
                sa.select(tables.transcript_entries).where(
                    tables.transcript_entries.c.session_id == UUID(fence.session_id)
                )
            )
