"""A watch over connections that break."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest

from aiagent.session.v1.session_service_pb2 import DeltaPosition
from aiagent_client import (
    Client,
    NotFoundError,
    SessionEvent,
    StreamError,
    TextDelta,
    UnavailableError,
    Watch,
    WatchCursor,
    resuming,
    watching,
)
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.scripted_session import Fault, Log

pytestmark = pytest.mark.unit
TURN = "0198c2f0-0000-7000-8000-000000000001"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "backoff", lambda attempt, at_least=None: 0.01)


class Seen:
    """What a watcher saw, checked: events gapless and once, pieces without gap or overlap."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.texts: dict[int, str] = {}

    def take(self, item: SessionEvent | TextDelta) -> None:
        if isinstance(item, TextDelta):
            known = self.texts.get(item.block, "")
            assert item.text_offset == len(known)
            self.texts[item.block] = known + item.text
        else:
            assert item.sequence == (self.sequences[-1] if self.sequences else 0) + 1
            self.sequences.append(item.sequence)


async def filled(server: ScriptedServer, blocks: int = 4) -> Log:
    log = server.new_log()
    for block in range(1, blocks + 1):
        await log.event(TURN, notice={"code": "N", "message": "between"})
        await log.say(TURN, block, *[f"{block}.{number} 🐘 " for number in range(6)])
    return log


async def follow(watch: Watch) -> Seen:
    seen = Seen()
    async for item in watch:
        seen.take(item)
    return seen


async def test_history_then_what_comes(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 2)
    log.running = True
    watch = client.sessions.watch(log.session.id, until_idle=True)
    seen = Seen()
    while len(seen.sequences) < 4:
        seen.take(await anext(watch))
    log.running = False
    await log.say(TURN, 3, "a", "b")
    async for item in watch:
        seen.take(item)
    assert seen.sequences == [1, 2, 3, 4, 5]
    assert seen.texts[3] == "ab"
    assert watch.cursor.sequence == 5


RESUMABLE = [
    Fault(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    Fault(grpc.StatusCode.UNAVAILABLE),
    Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_TOO_SLOW"),
    Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
    Fault(grpc.StatusCode.INTERNAL, message="RST_STREAM"),
]


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_lost_or_doubled_whatever_ends_the_connection(
    server: ScriptedServer, client: Client, seed: int
) -> None:
    chance = random.Random(seed)
    log = await filled(server, 6)
    for _ in range(20):
        fault = chance.choice(RESUMABLE)
        server.faults["WatchSession"].append(
            Fault(fault.code, fault.reason, fault.message, after=chance.randint(1, 5))
        )
    seen = await follow(client.sessions.watch(log.session.id, until_idle=True))
    assert seen.sequences == list(range(1, 13))
    assert seen.texts == {
        item.payload.assistant_message.block: item.payload.assistant_message.content.text
        for item in log.items
        if isinstance(item, SessionEvent) and item.payload.HasField("assistant_message")
    }
    assert len(server.calls["WatchSession"]) > 5


async def test_an_expired_token_is_renewed_for_the_next_connection(
    server: ScriptedServer, client: Client
) -> None:
    log = await filled(server)
    server.faults["WatchSession"] = [Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED", after=3)]
    watch = client.sessions.watch(log.session.id, until_idle=True)
    seen = Seen()
    seen.take(await anext(watch))
    server.valid_access.clear()
    async for item in watch:
        seen.take(item)
    assert len(seen.sequences) == 8
    assert len(server.calls["RefreshToken"]) == 1


async def test_a_server_that_restarts_is_waited_for(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 2)
    log.running = True
    told: list[Any] = []
    watch = client.sessions.watch(log.session.id, until_idle=True, on_reconnect=told.append)
    seen = Seen()
    for _ in range(3):
        seen.take(await anext(watch))
    rest = asyncio.create_task(_rest(watch, seen))
    await server.stop()
    while not told:
        await asyncio.sleep(0.01)
    log.running = False
    await server.start()
    await asyncio.wait_for(rest, 20)
    assert seen.sequences == [1, 2, 3, 4]


async def _rest(watch: Watch, seen: Seen) -> None:
    async for item in watch:
        seen.take(item)


async def test_a_silent_connection_is_given_up(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 1)
    log.running = True
    watch = Watch(
        client.sessions._connection, client.sessions._stub, log.session.id, until_idle=True, silence=0.3
    )
    follower = asyncio.create_task(follow(watch))
    while len(server.calls["WatchSession"]) < 3:
        await asyncio.sleep(0.05)
    log.running = False
    await log.say(TURN, 2, "the end")
    seen = await asyncio.wait_for(follower, 10)
    assert seen.sequences == [1, 2, 3]
    assert seen.texts[2] == "the end"


async def test_what_resuming_cannot_mend_is_raised(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 1)
    with pytest.raises(NotFoundError):
        await follow(client.sessions.watch("0198c2f0-0000-7000-8000-000000000000"))
    server.faults["WatchSession"] = [Fault(grpc.StatusCode.NOT_FOUND, "SESSION_DELETED", after=2)]
    with pytest.raises(NotFoundError) as caught:
        await follow(client.sessions.watch(log.session.id))
    assert caught.value.reason == "SESSION_DELETED"


async def test_a_server_that_never_answers_is_given_up(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 1)
    server.faults["WatchSession"] = [Fault(grpc.StatusCode.UNAVAILABLE)] * 30
    with pytest.raises(UnavailableError):
        await follow(client.sessions.watch(log.session.id))
    assert len(server.calls["WatchSession"]) == 5


async def test_one_that_answered_before_is_waited_for_so_long(server: ScriptedServer, client: Client) -> None:
    log = await filled(server, 1)
    server.faults["WatchSession"] = [
        Fault(grpc.StatusCode.UNAVAILABLE, after=2),
        *[Fault(grpc.StatusCode.UNAVAILABLE)] * 1000,
    ]
    watch = client.sessions.watch(log.session.id, give_up_after=0.3)
    with pytest.raises(UnavailableError):
        await follow(watch)
    assert len(server.calls["WatchSession"]) > 6


async def test_a_stored_cursor_goes_on_in_mid_block(server: ScriptedServer, client: Client) -> None:
    log = server.new_log()
    await log.event(TURN, notice={"code": "N"})
    for offset, piece in ((0, "abc"), (3, "def"), (6, "ghi")):
        await log.delta(TURN, 1, offset, piece)
    first = client.sessions.watch(log.session.id)
    seen = Seen()
    while seen.texts.get(1, "") != "abcdef":
        seen.take(await anext(first))
    stored = first.cursor.SerializeToString()
    await first.aclose()
    await log.say(TURN, 2, "x")
    second = client.sessions.watch(log.session.id, cursor=WatchCursor.FromString(stored), until_idle=True)
    async for item in second:
        seen.take(item)
    assert seen.texts == {1: "abcdefghi", 2: "x"}


class Replies:
    """A stub whose streams are lists: what a server must never send."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.requests: list[Any] = []

    def watch(self, client: Client, cursor: WatchCursor | None = None) -> Watch:
        made = client.sessions.watch("s", cursor=cursor, until_idle=True)
        connection = made._connection

        class Scripted:
            tokens = connection.tokens

            async def stream(_, open_call: Any, silence: float) -> Any:
                self.requests.append(open_call(()))
                for response in self.streams.pop(0) if self.streams else []:
                    yield response

        made._connection = Scripted()  # type: ignore[assignment]
        made._stub = type("Stub", (), {"WatchSession": staticmethod(lambda request, metadata: request)})()
        return made


def response(*items: Any) -> Any:
    made = watching.pb.WatchSessionResponse()
    for item in items:
        if isinstance(item, int):
            made.items.add().event.sequence = item
        else:
            block, offset, text = item
            made.items.add().delta.CopyFrom(
                TextDelta(turn_id=TURN, attempt=1, block=block, text_offset=offset, text=text)
            )
    return made


async def test_pieces_of_one_response_are_joined_and_overlap_is_cut(client: Client) -> None:
    replies = Replies([response(1, (1, 0, "ab"), (1, 1, "bcd"), (1, 4, "e")), response((1, 2, "cdef"), 1, 2)])
    items = [item async for item in replies.watch(client)]
    assert [item.text if isinstance(item, TextDelta) else item.sequence for item in items] == [
        1,
        "abcde",
        "f",
        2,
    ]


async def test_a_gap_makes_it_ask_again_and_gives_nothing_twice(client: Client) -> None:
    replies = Replies(
        [response(1, (1, 0, "abc")), response((1, 5, "f"))],
        [response((1, 0, "abcde"))],
        [response((1, 5, "fg"), 2), response(4)],
        [response(3, 4)],
    )
    items = [item async for item in replies.watch(client)]
    assert [item.text if isinstance(item, TextDelta) else item.sequence for item in items[:3]] == [
        1,
        "abc",
        "de",
    ]
    assert not replies.requests[1].cursor.HasField("delta")


async def test_a_stream_that_stays_broken_is_an_error(client: Client) -> None:
    replies = Replies(*[[response(2)]] * 9)
    with pytest.raises(StreamError):
        [item async for item in replies.watch(client)]


async def test_the_cursor_follows_each_item(client: Client) -> None:
    watch = Replies([response(1, (1, 0, "ab"), 2)]).watch(client)
    await anext(watch)
    assert watch.cursor == WatchCursor(sequence=1)
    await anext(watch)
    assert watch.cursor == WatchCursor(
        sequence=1, delta=DeltaPosition(turn_id=TURN, attempt=1, block=1, text_offset=2)
    )
    await anext(watch)
    assert watch.cursor.sequence == 2
