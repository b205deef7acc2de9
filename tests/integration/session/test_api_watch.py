"""WatchSession over the wire: where it begins, what it leaves out, and every way in which it ends."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from aiagent.executor.v1 import turn_item_pb2
from aiagent.session.v1 import permission_service_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from services.session.domain.events import EventDraft, Notice
from services.session.store import event_log
from services.session.usecases import watch
from tests.databases import Copy

from .scripted_executor import Attempt
from .serving import Client, Serving, reason, refusal, serving

pytestmark = pytest.mark.integration


class Seen:
    """What one watcher has received, with what it checks on the way."""

    def __init__(self, cursor: pb.WatchCursor | None = None) -> None:
        self.sequences: list[int] = []
        self.texts: dict[tuple[str, int, int], str] = {}
        self.cursor = cursor or pb.WatchCursor()
        self.checkpoints = 0

    def take(self, response: pb.WatchSessionResponse) -> None:
        self.cursor = response.cursor
        self.checkpoints += not response.items
        for item in response.items:
            if item.HasField("event"):
                self.sequences.append(item.event.sequence)
            else:
                key = (item.delta.turn_id, item.delta.attempt, item.delta.block)
                known = self.texts.get(key, "")
                assert item.delta.text_offset == len(known)
                self.texts[key] = known + item.delta.text

    async def follow(self, client: Client, session_id: str, *, stop: Any = None, **fields: Any) -> Seen:
        """Watches to the end of the stream, or until `stop` is true."""
        request = pb.WatchSessionRequest(session_id=session_id, cursor=self.cursor, **fields)
        call = client.sessions.WatchSession(request)
        async for response in call:
            self.take(response)
            if stop is not None and stop(self):
                call.cancel()
                break
        return self


@pytest.fixture
def client(api: Serving) -> Client:
    return api.client()


@pytest.fixture
async def session_id(client: Client) -> str:
    return (await client.session(name="watched")).id


async def test_from_the_beginning_it_is_the_whole_log(client: Client, session_id: str):
    await client.talk(session_id)
    seen = await Seen().follow(client, session_id, until_idle=True)
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]
    assert list(seen.texts.values()) == ["hello there"]
    assert seen.cursor.sequence == seen.sequences[-1]


async def test_from_a_cursor_it_is_the_rest(client: Client, session_id: str):
    await client.talk(session_id)
    last = (await client.get(session_id)).last_sequence
    for sequence in (1, last - 1, last):
        seen = await Seen(pb.WatchCursor(sequence=sequence)).follow(client, session_id, until_idle=True)
        assert seen.sequences == list(range(sequence + 1, last + 1))


async def test_no_more_is_read_at_once_than_goes_out_together(
    client: Client, session_id: str, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(3):
        await client.talk(session_id)
    limit = 60
    monkeypatch.setattr(watch, "RESPONSE_BYTES", limit)
    seen, responses = Seen(), []
    async for response in client.sessions.WatchSession(
        pb.WatchSessionRequest(session_id=session_id, until_idle=True)
    ):
        seen.take(response)
        events = [item.event for item in response.items if item.HasField("event")]
        responses.append([event.payload.ByteSize() for event in events])
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]
    assert all(sum(sizes[:-1]) < limit for sizes in responses), responses
    assert len([sizes for sizes in responses if len(sizes) > 1]) > 3, responses


async def test_a_cursor_ahead_of_the_log_is_refused(client: Client, session_id: str):
    error = await refusal(
        client.sessions.WatchSession(
            pb.WatchSessionRequest(session_id=session_id, cursor=pb.WatchCursor(sequence=99))
        )
    )
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "CURSOR_AHEAD")


async def test_an_empty_session_that_is_idle_ends_at_once(client: Client, session_id: str):
    assert (await Seen().follow(client, session_id, until_idle=True)).sequences == []


async def test_without_deltas_there_are_events_only(client: Client, session_id: str):
    await client.talk(session_id)
    seen = await Seen().follow(client, session_id, until_idle=True, exclude_deltas=True)
    assert seen.texts == {}
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]


class Slowly:
    """An agent that says a text piece by piece, when told so."""

    PIECES = ("one ", "two ", "🦊 ", "four")

    def __init__(self) -> None:
        self.go = asyncio.Semaphore(0)

    async def __call__(self, attempt: Attempt) -> None:
        attempt.started()
        offset = 0
        for piece in self.PIECES:
            await self.go.acquire()
            attempt.emit(block_delta=turn_item_pb2.BlockDelta(block=1, text_offset=offset, text=piece))
            offset += len(piece)
        await self.go.acquire()
        whole = "".join(self.PIECES)
        attempt.emit(block_completed=turn_item_pb2.BlockCompleted(block=1, text=whole, model="m"))
        attempt.end("SUCCEEDED")


def the_text(seen: Seen) -> str:
    return next(iter(seen.texts.values()), "")


async def test_who_joins_in_mid_block_gets_its_text_so_far_and_then_the_rest(
    api: Serving, client: Client, session_id: str
):
    slowly = api.plays["slowly"] = Slowly()
    first = Seen()
    watching = asyncio.create_task(first.follow(client, session_id))
    turn = await client.send(session_id, "slowly")
    for _ in range(2):
        slowly.go.release()
    await api.until(lambda: _async(the_text(first) == "one two "))
    late = Seen()
    joining = asyncio.create_task(late.follow(client, session_id, until_idle=True))
    await api.until(lambda: _async(the_text(late) == "one two "))
    for _ in range(3):
        slowly.go.release()
    await client.wait(turn)
    await joining
    assert the_text(late) == "one two 🦊 four"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def _async(value: Any) -> Any:
    return value


async def test_a_cut_in_mid_block_resumes_at_the_very_character(
    api: Serving, client: Client, session_id: str
):
    slowly = api.plays["slowly"] = Slowly()
    turn = await client.send(session_id, "slowly")
    seen = Seen()
    told = 0
    for piece in Slowly.PIECES:
        slowly.go.release()
        told += len(piece)
        await seen.follow(client, session_id, stop=lambda seen, told=told: len(the_text(seen)) >= told)
    assert seen.cursor.delta.text_offset == len("one two 🦊 four")
    slowly.go.release()
    await client.wait(turn)
    await seen.follow(client, session_id, until_idle=True)
    assert the_text(seen) == "one two 🦊 four"
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]


async def test_it_ends_when_the_session_is_deleted(api: Serving, client: Client, session_id: str):
    call = client.sessions.WatchSession(pb.WatchSessionRequest(session_id=session_id))
    ending = asyncio.create_task(reason(call))
    await client.talk(session_id)
    await client.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=session_id))
    assert await ending == "NOT_FOUND SESSION_DELETED"


async def test_it_ends_with_its_token(api: Serving, client: Client, session_id: str):
    brief = api.client(client.caller, lifetime=timedelta(seconds=2))
    begun = datetime.now(UTC)
    assert (
        await reason(brief.sessions.WatchSession(pb.WatchSessionRequest(session_id=session_id)))
        == "UNAUTHENTICATED TOKEN_EXPIRED"
    )
    assert datetime.now(UTC) - begun < timedelta(seconds=4)


async def test_a_checkpoint_comes_when_nothing_happens(
    api: Serving, client: Client, session_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "CHECKPOINT_SECONDS", 0.2)
    await client.talk(session_id)
    seen = await Seen().follow(client, session_id, stop=lambda seen: seen.checkpoints >= 2)
    assert seen.cursor.sequence == seen.sequences[-1]


async def test_waiting_turns_keep_an_until_idle_watch_open(api: Serving, client: Client, session_id: str):
    question = await client.question(session_id)
    watching = asyncio.create_task(Seen().follow(client, session_id, until_idle=True))
    done, _ = await asyncio.wait({watching}, timeout=0.5)
    assert not done
    await client.permissions.ResolvePermission(
        permission_service_pb2.ResolvePermissionRequest(
            session_id=session_id, permission_request_id=question.id, decision="DENY"
        )
    )
    seen = await asyncio.wait_for(watching, 20)
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]


async def test_many_watchers_see_the_same(client: Client, session_id: str):
    watchers = [
        asyncio.create_task(
            Seen().follow(client, session_id, stop=lambda seen: len(seen.sequences) >= 30, until_idle=False)
        )
        for _ in range(20)
    ]
    for _ in range(4):
        await client.talk(session_id)
    total = (await client.get(session_id)).last_sequence
    assert total >= 30
    seen = await asyncio.gather(*watchers)
    for one in seen:
        assert one.sequences[:30] == list(range(1, 31))
        assert all("hello there".startswith(text) for text in one.texts.values())


async def test_a_history_of_large_events_is_read_in_portions_of_a_bounded_size(
    api: Serving, client: Client, session_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "RESPONSE_BYTES", 100_000)
    large = [EventDraft(Notice("LARGE", str(number) * 30_000)) for number in range(9)]
    large[4] = EventDraft(Notice("HUGE", "x" * 200_000))
    async with api.database.system() as connection:
        await event_log.append(connection, await event_log.lock_head(connection, UUID(session_id)), large)
    portions: list[list[int]] = []
    read = event_log.read

    async def reading(*arguments: Any, **options: Any) -> Any:
        found = await read(*arguments, **options)
        portions.append([len(event.payload) for event in found])
        return found

    monkeypatch.setattr(event_log, "read", reading)
    seen = await Seen().follow(client, session_id, until_idle=True)
    assert seen.sequences == list(range(1, (await client.get(session_id)).last_sequence + 1))
    assert len(portions) >= 3
    for sizes in portions:
        assert sum(sizes[:-1]) < 100_000, "one event more at most than what the bound allows"


async def test_the_deltas_of_a_text_in_the_blob_store_are_all_of_it(
    api: Serving, client: Client, session_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "RESPONSE_BYTES", 100_000)
    text = "naïve 🦊 " * 40_000

    async def tell(attempt: Attempt) -> None:
        attempt.started()
        attempt.say(text, pieces=10)
        attempt.end("SUCCEEDED")

    api.plays["tell"] = tell
    await client.talk(session_id, "tell")
    later = await Seen().follow(client, session_id, until_idle=True)
    assert [len(told) for told in later.texts.values()] == [len(text)]
    assert the_text(later) == text
    # Cut in the middle of it, it goes on from there.
    cut = await Seen().follow(client, session_id, stop=the_text)
    assert 0 < len(the_text(cut)) < len(text)
    await cut.follow(client, session_id, until_idle=True)
    assert the_text(cut) == text
    assert cut.sequences == later.sequences
    # What is lost is lost, and no reason to hold back the history.
    shutil.rmtree(api.settings.blob_url.removeprefix("file://"))
    beginning = await Seen().follow(client, session_id, until_idle=True)
    assert beginning.sequences == later.sequences
    assert the_text(beginning) == text[:4096]


@pytest.mark.parametrize("ids", ["session_id", "cursor.sequence", "cursor.delta.turn_id"])
async def test_a_bad_request_names_its_field(client: Client, session_id: str, ids: str):
    requests = {
        "session_id": pb.WatchSessionRequest(session_id="x"),
        "cursor.sequence": pb.WatchSessionRequest(session_id=session_id, cursor={"sequence": -1}),
        "cursor.delta.turn_id": pb.WatchSessionRequest(
            session_id=session_id, cursor={"sequence": 0, "delta": {"turn_id": "x", "attempt": 1, "block": 1}}
        ),
    }
    error = await refusal(client.sessions.WatchSession(requests[ids]))
    assert error.kind.value == "INVALID_ARGUMENT"
    assert [violation.field for violation in error.violations] == [ids]


async def test_a_cursor_with_a_block_that_never_was_is_no_harm(client: Client, session_id: str):
    await client.talk(session_id)
    cursor = pb.WatchCursor(
        sequence=0, delta={"turn_id": str(uuid4()), "attempt": 1, "block": 7, "text_offset": 10**6}
    )
    seen = await Seen(cursor).follow(client, session_id, until_idle=True)
    assert seen.sequences == [event.sequence for event in await client.events(session_id)]
    assert "hello there" in seen.texts.values()


async def test_a_drain_ends_streams_with_a_status_to_resume_on(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
):
    async with serving(databases, valkey, tmp_path_factory.mktemp("draining")) as api:
        client = api.client()
        session = await client.session()
        await client.talk(session.id)
        call = client.sessions.WatchSession(pb.WatchSessionRequest(session_id=session.id))
        seen = Seen()
        ending = asyncio.create_task(refusal(_taking(call, seen)))
        await api.until(lambda: _async(seen.sequences))
        await api.service.drain(5)
        error = await ending
        assert (error.kind.value, error.reason) == ("UNAVAILABLE", "DRAINING")
        # Another replica, or the next start, goes on from there.
        async with serving(databases, valkey, tmp_path_factory.mktemp("after")) as after:
            assert after.tokens is not api.tokens
            again = after.client(client.caller)
            await again.talk(session.id)
            await seen.follow(again, session.id, until_idle=True)
            assert seen.sequences == [event.sequence for event in await again.events(session.id)]


async def _taking(call: Any, seen: Seen) -> Any:
    async for response in call:
        seen.take(response)
        yield response
