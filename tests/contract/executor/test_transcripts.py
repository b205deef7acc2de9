"""Where conversations are kept: what executors may expect of the session service and of its stand-in in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID, uuid4

import pytest

from deploy.local.servers import Valkey
from services.executor.gateways.transcripts import TranscriptClient
from services.executor.usecases.ports import (
    AttemptPass,
    TranscriptPort,
    TranscriptRefused,
    TranscriptUnavailable,
)
from services.kernel.grpc import open_channel
from tests.databases import Copy
from tests.integration.session.transcript_store import Store, open_store
from tests.unit.executor.memory_transcripts import MemoryTranscripts, an_entry

pytestmark = pytest.mark.contract


class Desk(Protocol):
    """Begins attempts, whose conversations are then kept."""

    port: TranscriptPort

    async def begin(self) -> AttemptPass: ...
    async def again(self, before: AttemptPass) -> AttemptPass: ...
    async def out_of_reach(self) -> TranscriptPort: ...


class MemoryDesk:
    """Of the stand-in."""

    def __init__(self) -> None:
        self.port = MemoryTranscripts()

    async def begin(self) -> AttemptPass:
        first = AttemptPass(uuid4(), uuid4(), 1, "a token")
        self.port.begin(first)
        return first

    async def again(self, before: AttemptPass) -> AttemptPass:
        following = AttemptPass(before.session_id, before.turn_id, before.attempt + 1, "another")
        self.port.begin(following)
        return following

    async def out_of_reach(self) -> TranscriptPort:
        away = MemoryTranscripts()
        away.away = True
        return away


class ServiceDesk:
    """Of the session service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.port = TranscriptClient(store.channel)

    async def begin(self) -> AttemptPass:
        fence = await self._store.attempt()
        return AttemptPass(UUID(fence.session_id), UUID(fence.turn_id), fence.attempt, fence.token)

    async def again(self, before: AttemptPass) -> AttemptPass:
        await self._store.superseded(str(before.session_id), before.attempt + 1)
        fence = await self._store.begun(str(before.session_id), before.attempt + 1)
        return AttemptPass(before.session_id, UUID(fence.turn_id), fence.attempt, fence.token)

    async def out_of_reach(self) -> TranscriptPort:
        return TranscriptClient(open_channel("127.0.0.1:1", signer=None, audience="session", balanced=True))


@pytest.fixture(scope="module")
async def store(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Store]:
    async with open_store(databases, valkey, tmp_path_factory.mktemp("transcripts")) as made:
        yield made


@pytest.fixture(params=["memory", "service"])
def desk(request: pytest.FixtureRequest, store: Store) -> Desk:
    return MemoryDesk() if request.param == "memory" else ServiceDesk(store)


async def test_entries_are_read_as_they_were_appended(desk: Desk):
    attempt, conversation = await desk.begin(), str(uuid4())
    one, two, three = an_entry(uuid=str(uuid4())), an_entry(text="\0 \ud800"), an_entry(uuid=str(uuid4()))
    assert await desk.port.append(attempt, conversation, "", [one, two]) == 2
    assert await desk.port.append(attempt, conversation, "subagents/agent-1", [three]) == 3
    stored = await desk.port.read(attempt, conversation)
    assert stored.position == 3
    assert stored.entries == (
        ("", one.id, one.json),
        ("", two.id, two.json),
        ("subagents/agent-1", three.id, three.json),
    )


async def test_an_entry_is_kept_once(desk: Desk):
    attempt, conversation = await desk.begin(), str(uuid4())
    one, two = an_entry(n=1), an_entry(n=2)
    await desk.port.append(attempt, conversation, "", [one])
    assert await desk.port.append(attempt, conversation, "", [one, two]) == 2
    assert [entry[1] for entry in (await desk.port.read(attempt, conversation)).entries] == [one.id, two.id]


async def test_conversations_of_a_session_are_apart_and_share_its_positions(desk: Desk):
    attempt, first, second = await desk.begin(), str(uuid4()), str(uuid4())
    entry = an_entry(n=1)
    await desk.port.append(attempt, first, "", [entry])
    assert await desk.port.append(attempt, second, "", [entry]) == 2
    stored = await desk.port.read(attempt, second)
    assert (stored.position, len(stored.entries)) == (2, 1)
    assert await desk.port.read(attempt, str(uuid4())) == type(stored)(2, ())


async def test_a_later_attempt_reads_all_and_closes_the_earlier_one(desk: Desk):
    before, conversation = await desk.begin(), str(uuid4())
    await desk.port.append(before, conversation, "", [an_entry(n=1)])
    after = await desk.again(before)
    with pytest.raises(TranscriptRefused):
        await desk.port.append(before, conversation, "", [an_entry(n=2)])
    with pytest.raises(TranscriptRefused):
        await desk.port.read(before, conversation)
    assert len((await desk.port.read(after, conversation)).entries) == 1
    assert await desk.port.append(after, conversation, "", [an_entry(n=3)]) == 2


async def test_a_store_that_is_away_says_so(desk: Desk):
    attempt = await desk.begin()
    away = await desk.out_of_reach()
    with pytest.raises(TranscriptUnavailable):
        await away.append(attempt, str(uuid4()), "", [an_entry()])
    with pytest.raises(TranscriptUnavailable):
        await away.read(attempt, str(uuid4()))


async def test_much_is_sent_in_several_calls(desk: Desk):
    attempt, conversation = await desk.begin(), str(uuid4())
    entries = [an_entry(n=number, text="x" * 100_000) for number in range(120)]
    assert await desk.port.append(attempt, conversation, "", entries) == 120
    stored = await desk.port.read(attempt, conversation)
    assert [entry[1] for entry in stored.entries] == [entry.id for entry in entries]
