"""A watcher whose session goes away, one that leaves deltas out, one that falls behind, one that hears old words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from services.kernel.clock import SystemClock
from services.kernel.errors import ServiceError
from services.session.domain.errors import session_not_found
from services.session.domain.gate import BlockKey, Delta, GateEvent
from services.session.domain.states import TurnState
from services.session.gateways import subscriptions
from services.session.gateways.subscriptions import Subscription
from services.session.usecases import watch
from services.session.usecases.ports import DrainFrame, EventsFrame, Frame, HeadFrame
from services.session.usecases.waiting import Waiting
from services.session.usecases.watch import Watching, WatchRequest

pytestmark = pytest.mark.unit

SESSION = uuid4()
KEY = BlockKey(uuid4(), 1, 1)
REQUEST = WatchRequest(SESSION, 5, None, 0, exclude_deltas=False, until_idle=False)
CALLER: Any = SimpleNamespace(user_id=uuid4(), token_expire_time=datetime.now(UTC) + timedelta(hours=1))


@dataclass
class Log:
    """A session of five events, until it is purged."""

    there: bool = True
    reads: int = 0
    turn: TurnState = TurnState.RUNNING
    events: list[GateEvent] = field(default_factory=list)
    looked: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def begin(self, caller: object) -> AsyncIterator[Log]:
        yield self

    async def get_session(self, session_id: UUID) -> Any:
        if not self.there:
            raise session_not_found(session_id)
        return SimpleNamespace(last_sequence=5)

    async def get_turn(self, session_id: UUID, turn_id: UUID) -> Any:
        self.looked.set()
        return SimpleNamespace(id=turn_id, state=self.turn)

    async def now(self) -> datetime:
        return datetime.now(UTC)

    async def list_events(self, _: object, __: object, after: int, limit: int, *___: object) -> list[Any]:
        self.reads += 1
        # A log that is read without end must not keep the test from ending.
        await asyncio.sleep(0)
        later = [event for event in self.events if event.sequence > after]
        return [SimpleNamespace(payload=b"", event=event) for event in later[:limit]]


@dataclass
class Feed:
    """Offers frames once somebody has subscribed."""

    frames: list[Frame]
    on_subscribe: Callable[[], None] = lambda: None
    subscriptions: list[Subscription] = field(default_factory=list)
    open: Delta | None = None

    @asynccontextmanager
    async def subscribe(self, session_id: UUID) -> AsyncIterator[Subscription]:
        subscription = Subscription(session_id)
        self.subscriptions.append(subscription)
        for frame in self.frames:
            subscription.offer(frame)
        yield subscription

    async def block(self, session_id: UUID) -> Delta | None:
        return self.open


def watching(log: Log, feed: Feed) -> Watching:
    return Watching(
        cast(Any, log),
        cast(Any, feed),
        SystemClock(),
        cast(Any, None),
        cast(Any, lambda read: read.event),
        10,
    )


async def test_a_head_of_a_log_that_is_purged_ends_the_watching():
    log, feed = Log(), Feed([HeadFrame(9)])
    batches = watching(log, feed).watch(CALLER, REQUEST)

    async def follow() -> None:
        async for _ in batches:
            raise AssertionError("there is nothing to see")

    real = log.list_events

    async def purged(*arguments: object) -> list[Any]:
        log.there = False
        return await real(*arguments)

    log.list_events = purged  # type: ignore[method-assign]
    with pytest.raises(ServiceError) as caught:
        await asyncio.wait_for(follow(), 5)
    assert caught.value.reason == "SESSION_DELETED"
    assert log.reads < 5


async def test_who_may_not_see_a_session_is_not_subscribed_to_it():
    log, feed = Log(there=False), Feed([])
    with pytest.raises(ServiceError) as caught:
        await anext(watching(log, feed).watch(CALLER, REQUEST))
    assert caught.value.reason == "SESSION_NOT_FOUND"
    assert not feed.subscriptions


async def test_checkpoints_come_while_deltas_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "CHECKPOINT_SECONDS", 0.1)
    log, feed = Log(), Feed([])
    request = WatchRequest(SESSION, 5, None, 0, exclude_deltas=True, until_idle=False)
    batches = watching(log, feed).watch(CALLER, request)
    first = asyncio.create_task(anext(batches))

    async def talk() -> None:
        offset = 0
        while True:
            offset += 1
            for subscription in feed.subscriptions:
                subscription.offer(Delta(BlockKey(uuid4(), 1, 1), offset, "x", False, 5))
            await asyncio.sleep(0.01)

    talking = asyncio.create_task(talk())
    batch = await asyncio.wait_for(first, 5)
    assert (batch.items, batch.head) == ([], 5)
    talking.cancel()


async def test_who_waits_for_a_turn_learns_of_an_end_that_an_overflow_swallowed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(subscriptions, "QUEUE_FRAMES", 3)
    log, feed = Log(), Feed([])
    waits = Waiting(cast(Any, log), cast(Any, feed), SystemClock())
    waiting = asyncio.create_task(waits.wait(CALLER, SESSION, uuid4(), 60))

    await asyncio.wait_for(log.looked.wait(), 5)
    log.turn = TurnState.SUCCEEDED
    (subscription,) = feed.subscriptions
    subscription.offer(EventsFrame((), 0))
    for offset in range(3):
        subscription.offer(Delta(BlockKey(uuid4(), 1, 1), offset, "x", False, 5))
    waited = await asyncio.wait_for(waiting, 5)
    assert waited.turn.state is TurnState.SUCCEEDED


@dataclass
class Counting(Log):
    """Counts how often the turn is looked at."""

    looks: int = 0

    async def get_turn(self, session_id: UUID, turn_id: UUID) -> Any:
        self.looks += 1
        return await super().get_turn(session_id, turn_id)


TURN = uuid4()


@pytest.mark.parametrize(
    "last",
    [
        EventsFrame((GateEvent(8, "end", ends_turn=TURN),), 0),
        EventsFrame((GateEvent(8, "question", asks_in_turn=TURN),), 0),
        EventsFrame((GateEvent(9, "one is missing"),), 0),
        HeadFrame(8),
        DrainFrame(),
    ],
)
async def test_who_waits_looks_only_when_the_waiting_may_be_over(last: Frame):
    log, feed = Counting(), Feed([])
    waits = Waiting(cast(Any, log), cast(Any, feed), SystemClock())
    waiting = asyncio.create_task(waits.wait(CALLER, SESSION, TURN, 60))
    await asyncio.wait_for(log.looked.wait(), 5)
    (subscription,) = feed.subscriptions
    for frame in (
        EventsFrame(
            (GateEvent(5, "seen"), GateEvent(6, "a message"), GateEvent(7, "other", ends_turn=uuid4())), 0
        ),
        HeadFrame(7),
        Delta(KEY, 0, "x", False, 7),
    ):
        subscription.offer(frame)
        while subscription._frames:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert log.looks == 1
    log.turn = TurnState.SUCCEEDED
    subscription.offer(last)
    await asyncio.wait_for(waiting, 5)
    assert log.looks == 2


@pytest.mark.parametrize("so_far", [None, Delta(KEY, 0, "done", False, 2)])
async def test_what_was_said_before_the_cursor_and_comes_late_is_not_said_again(so_far: Delta | None):
    log = Log(events=[GateEvent(sequence, "event") for sequence in range(1, 5)])
    log.events.append(GateEvent(5, "message", completes=KEY, text="done"))
    # Both are from before the message: a piece that a frozen Valkey held back, and a text so far that it then shows.
    feed = Feed([Delta(KEY, 0, "do", False, 3), DrainFrame()], open=so_far)
    seen = []
    with pytest.raises(ServiceError) as caught:
        async for batch in watching(log, feed).watch(CALLER, REQUEST):
            seen += batch.items
    assert caught.value.reason == "DRAINING"
    assert seen == []


async def test_after_an_overflow_the_open_block_is_brought_in_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscriptions, "QUEUE_FRAMES", 3)
    feed = Feed([])
    batches = watching(Log(), feed).watch(CALLER, REQUEST)
    first = asyncio.create_task(anext(batches))
    for _ in range(50):
        # It comes to where it waits for frames: nothing else in this test takes time.
        await asyncio.sleep(0)
    feed.open = Delta(KEY, 0, "one two", False, 5)
    for _ in range(5):
        feed.subscriptions[0].offer(HeadFrame(5))
    assert (await asyncio.wait_for(first, 5)).items == [Delta(KEY, 0, "one two", False)]


async def test_a_watcher_that_loses_frames_again_and_again_is_sent_away():
    log, feed = Log(), Feed([])
    batches = watching(log, feed).watch(CALLER, REQUEST)
    waiting = asyncio.create_task(anext(batches))
    while not feed.subscriptions or not log.reads:
        await asyncio.sleep(0)
    (subscription,) = feed.subscriptions
    for lost in range(1, watch.MAX_OVERFLOWS + 2):
        assert not waiting.done()
        subscription.overflowed = True
        subscription.offer(EventsFrame((), 0))
        async with asyncio.timeout(5):
            while subscription.overflowed or (log.reads <= lost and not waiting.done()):
                await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await asyncio.wait_for(waiting, 5)
    assert caught.value.reason == "WATCHER_TOO_SLOW"
    assert log.reads == 1 + watch.MAX_OVERFLOWS


async def test_a_long_text_so_far_comes_in_responses_that_clients_take():
    text = "語" * 3_000_000
    feed = Feed([DrainFrame()], open=Delta(KEY, 0, text, False, 5))
    said = ""
    with pytest.raises(ServiceError):
        async for batch in watching(Log(), feed).watch(CALLER, REQUEST):
            pieces = [item for item in batch.items if isinstance(item, Delta)]
            assert sum(piece.size_bytes for piece in pieces) < 4 * 1024 * 1024
            said += "".join(piece.text for piece in pieces)
            assert (batch.block, batch.offset) == (KEY, len(said))
    assert said == text
