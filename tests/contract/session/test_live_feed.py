"""The live feed, in one process and across two by Valkey: one set of promises.

The gates before it forgive losses; so the promises are few: what is published while all is well arrives, in order and
once; who joins in mid-block finds its text so far; what was lost in bad weather is announced by the head of the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from aiagent.events.v1 import session_event_pb2
from deploy.local.servers import Valkey
from deploy.local.state import StateDirectory
from services.kernel.lifecycle import Drain
from services.kernel.redis import UNAVAILABLE, open_redis
from services.session.domain.entities import LogEvent
from services.session.domain.gate import BlockKey, Delta
from services.session.gateways import live_feed, open_blocks, subscriptions
from services.session.gateways.live_feed import LiveFeed
from services.session.gateways.subscriptions import Subscription
from services.session.usecases.ports import DeletedFrame, DrainFrame, EventsFrame, Frame, HeadFrame

pytestmark = pytest.mark.contract
TURN = uuid4()


@dataclass
class Feeds:
    """The feed of the driver's replica, and that of the watcher's: the same one, or another behind Valkey."""

    driving: LiveFeed
    watching: LiveFeed
    heads: dict[UUID, int] = field(default_factory=dict)
    drain: Drain = field(default_factory=Drain)
    redis: Redis | None = None

    async def publish(self, session_id: UUID, sequence: int, **payload: object) -> None:
        """An event is committed, then published."""
        self.heads[session_id] = sequence
        await self.driving.publish_events(session_id, [event(session_id, sequence, **payload)])

    async def delta(
        self, session_id: UUID, offset: int, text: str, *, block: int = 1, attempt: int = 1
    ) -> None:
        await self.driving.publish_delta(session_id, 1, TURN, attempt, block, offset, text, False)


def event(session_id: UUID, sequence: int, **payload: object) -> LogEvent:
    if not payload:
        payload = {"notice": {"code": "TEST", "message": "x"}}
    made = session_event_pb2.SessionEventPayload(**payload)  # type: ignore[arg-type]
    kind = made.WhichOneof("kind") or ""
    return LogEvent(session_id, sequence, TURN, kind, made.SerializeToString(), datetime.now(UTC))


def completed(block: int, text: str, attempt: int = 1) -> dict[str, object]:
    return {
        "assistant_message": {
            "message_id": str(uuid4()),
            "attempt": attempt,
            "block": block,
            "type": "TEXT",
            "content": {"text": text},
        }
    }


@pytest.fixture(scope="module")
async def own_valkey() -> AsyncIterator[Valkey]:
    """A Valkey to be killed."""
    with tempfile.TemporaryDirectory(prefix="aiagent-feed-") as folder:
        state = StateDirectory(Path(folder))
        state.open()
        server = Valkey(state, state.secrets())
        await server.start()
        yield server
        await server.stop()


@pytest.fixture(params=["one process", "across Valkey"])
async def feeds(
    request: pytest.FixtureRequest, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Feeds]:
    monkeypatch.setattr(live_feed, "POLL_SECONDS", 0.2)
    heads: dict[UUID, int] = {}
    drain = Drain()

    async def read_heads(wanted: Sequence[UUID]) -> dict[UUID, int]:
        return {session_id: heads[session_id] for session_id in wanted if session_id in heads}

    connections = [open_redis(own_valkey.url) for _ in range(2)] if request.param != "one process" else [None]
    made = [LiveFeed(redis, read_heads, drain) for redis in connections]
    for feed in made:
        await feed.start()
    yield Feeds(made[0], made[-1], heads, drain, connections[0])
    for feed in made:
        await feed.stop()
    for redis in connections:
        if redis is not None:
            await redis.aclose()


async def until(
    subscription: Subscription, enough: Callable[[list[Frame]], bool], seconds: float = 10
) -> list[Frame]:
    """Takes frames until they are enough."""
    frames: list[Frame] = []
    async with asyncio.timeout(seconds):
        while not enough(frames):
            frames += await subscription.take(1.0)
    return frames


def sequences(frames: list[Frame]) -> list[int]:
    return [event.sequence for frame in frames if isinstance(frame, EventsFrame) for event in frame.events]


async def listening(feeds: Feeds, session_id: UUID, subscription: Subscription) -> None:
    """Waits until what is published arrives: Valkey takes a moment to know of a subscription."""
    async with asyncio.timeout(10):
        while True:
            await feeds.driving.publish_events(session_id, [event(session_id, 1)])
            if 1 in sequences(await subscription.take(0.1)):
                break
    # What was tried meanwhile is on its way; it comes before this.
    await feeds.driving.publish_events(session_id, [event(session_id, 0)])
    await until(subscription, lambda frames: 0 in sequences(frames))


@pytest.fixture
async def session_id(feeds: Feeds) -> UUID:
    made = uuid4()
    feeds.heads[made] = 1
    return made


async def test_events_and_deltas_arrive_in_their_order(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        await feeds.publish(session_id, 2)
        await feeds.delta(session_id, 0, "naïve ")
        await feeds.delta(session_id, 6, "🦊")
        await feeds.publish(session_id, 3, **completed(1, "naïve 🦊"))
        frames = await until(subscription, lambda frames: 3 in sequences(frames))
        shape = [frame for frame in frames if not isinstance(frame, HeadFrame)]
        assert sequences(frames) == [2, 3], "and once: this replica's own do not come back"
        assert [(frame.offset, frame.text) for frame in shape if isinstance(frame, Delta)] == [
            (0, "naïve "),
            (6, "🦊"),
        ]
        assert isinstance(shape[0], EventsFrame)
        assert isinstance(shape[-1], EventsFrame)
        [closing] = shape[-1].events
        assert (closing.completes, closing.text) == (BlockKey(TURN, 1, 1), "naïve 🦊")


async def test_other_sessions_are_not_heard(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        await feeds.publish(uuid4(), 2)
        await feeds.publish(session_id, 2)
        assert sequences(await until(subscription, lambda frames: 2 in sequences(frames))) == [2]


async def test_every_watcher_is_told(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as first, feeds.watching.subscribe(session_id) as second:
        await listening(feeds, session_id, first)
        await second.take(0.05)
        await feeds.publish(session_id, 2)
        for subscription in (first, second):
            assert 2 in sequences(await until(subscription, lambda frames: 2 in sequences(frames)))


async def block_is(feeds: Feeds, session_id: UUID, text: str | None) -> Delta | None:
    """Waits until the text so far is as it should be."""
    async with asyncio.timeout(5):
        while True:
            found = await feeds.watching.block(session_id)
            if (found.text if found else None) == text:
                return found
            await asyncio.sleep(0.02)


async def test_who_joins_in_mid_block_finds_its_text_so_far(
    feeds: Feeds, session_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(open_blocks, "SNAPSHOT_SECONDS", 0.0)
    await feeds.delta(session_id, 0, "one ")
    await feeds.delta(session_id, 4, "two")
    found = await block_is(feeds, session_id, "one two")
    assert found is not None
    assert (found.key, found.offset, found.after_sequence) == (BlockKey(TURN, 1, 1), 0, 1)


@pytest.mark.parametrize("ending", ["completed", "turn ended", "next attempt"])
async def test_a_block_that_is_over_is_not_offered(feeds: Feeds, session_id: UUID, ending: str):
    await feeds.delta(session_id, 0, "one")
    await block_is(feeds, session_id, "one")
    endings = {
        "completed": completed(1, "one"),
        "turn ended": {"turn_ended": {"state": "FAILED"}},
        "next attempt": {"attempt_started": {"attempt": 2, "executor_id": "e"}},
    }
    await feeds.publish(session_id, 2, **endings[ending])
    await block_is(feeds, session_id, None)


async def test_a_lost_last_event_is_announced_by_the_head(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        feeds.heads[session_id] = 7  # Committed by somebody who died before publishing.
        frames = await until(subscription, lambda frames: HeadFrame(7) in frames)
        assert frames.count(HeadFrame(7)) == 1
        assert HeadFrame(7) not in await subscription.take(0.5), "it is told once"


async def test_the_end_of_a_session_is_told(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        del feeds.heads[session_id]
        await until(subscription, lambda frames: DeletedFrame() in frames)


async def test_a_drain_is_told_to_those_who_watch_and_those_who_come(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        feeds.drain.begin()
        await until(subscription, lambda frames: DrainFrame() in frames)
    async with feeds.watching.subscribe(session_id) as late:
        assert DrainFrame() in await late.take(1.0)


async def test_who_does_not_keep_up_loses_frames_and_learns_it(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        for sequence in range(2, subscriptions.QUEUE_FRAMES + 3):
            subscription.offer(HeadFrame(sequence))
        assert subscription.overflowed
        assert len(await subscription.take(0)) <= subscriptions.QUEUE_FRAMES


async def test_no_overflow_costs_the_notice_of_a_drain(feeds: Feeds, session_id: UUID):
    async with (
        feeds.watching.subscribe(session_id) as subscription,
        feeds.watching.subscribe(session_id) as other,
    ):
        feeds.drain.begin()
        await until(other, lambda frames: DrainFrame() in frames)
        for sequence in range(2, subscriptions.QUEUE_FRAMES + 3):
            subscription.offer(HeadFrame(sequence))
        assert subscription.overflowed
        assert (await subscription.take(0))[-1] == DrainFrame()


across_valkey = pytest.mark.parametrize("feeds", ["across Valkey"], indirect=True)


@pytest.mark.chaos
@across_valkey
async def test_valkey_is_killed_and_comes_back(feeds: Feeds, session_id: UUID, own_valkey: Valkey):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, signal.SIGKILL)
        await feeds.publish(session_id, 2)
        frames = await until(subscription, lambda frames: HeadFrame(2) in frames or 2 in sequences(frames))
        assert frames
        await listening(feeds, session_id, subscription)
        await feeds.publish(session_id, 3)
        await until(subscription, lambda frames: 3 in sequences(frames))


@pytest.mark.chaos
@across_valkey
async def test_valkey_forgets_everything(feeds: Feeds, session_id: UUID, monkeypatch: pytest.MonkeyPatch):
    assert feeds.redis is not None
    monkeypatch.setattr(open_blocks, "SNAPSHOT_SECONDS", 0.0)
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        await feeds.delta(session_id, 0, "one ")
        await block_is(feeds, session_id, "one ")
        await feeds.redis.flushall()
        await block_is(feeds, session_id, None)
        await feeds.delta(session_id, 4, "two")
        await block_is(feeds, session_id, "one two")
        await feeds.publish(session_id, 2)
        await until(subscription, lambda frames: 2 in sequences(frames))


@across_valkey
async def test_nobody_waits_for_a_frozen_valkey(feeds: Feeds, session_id: UUID, own_valkey: Valkey):
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(0.5):
            for sequence in range(2, 500):
                await feeds.publish(session_id, sequence)
                await feeds.delta(session_id, 0, "x" * 1000)
        async with asyncio.timeout(3), feeds.driving.subscribe(session_id) as subscription:
            await feeds.publish(session_id, 501)
            assert 501 in sequences(await subscription.take(1.0))
        # Nor does who joins: the first waits a moment, and then for a while nobody.
        async with asyncio.timeout(1.0), feeds.watching.subscribe(uuid4()):
            for _ in range(10):
                assert await feeds.watching.block(session_id) is None
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)


@across_valkey
async def test_nonsense_on_the_channel_ends_nothing(feeds: Feeds, session_id: UUID):
    assert feeds.redis is not None
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        for nonsense in (b"", b"x", b"\xff" * 100):
            await feeds.redis.publish(f"aiagent:session:{session_id}", nonsense)
            await feeds.redis.publish("aiagent:drivers", nonsense)
            await feeds.redis.set(f"aiagent:session:{session_id}:block", nonsense)
            assert await feeds.watching.block(session_id) is None
        await feeds.publish(session_id, 2)
        await until(subscription, lambda frames: 2 in sequences(frames))


@across_valkey
async def test_when_the_driver_moves_the_old_replica_hears_the_new_one(feeds: Feeds, session_id: UUID):
    # The session was driven on the watcher's replica; its driver was lost in mid-block.
    await feeds.watching.publish_delta(session_id, 1, TURN, 1, 1, 0, "half", False)
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        await feeds.delta(session_id, 0, "anew", attempt=2)
        frames = await until(subscription, lambda frames: any(isinstance(frame, Delta) for frame in frames))
        assert [frame.text for frame in frames if isinstance(frame, Delta)] == ["anew"]
        await block_is(feeds, session_id, "anew")


@across_valkey
async def test_who_takes_over_in_mid_block_leaves_what_joiners_find(feeds: Feeds, session_id: UUID):
    await feeds.delta(session_id, 0, "one ")
    await block_is(feeds, session_id, "one ")
    await feeds.delta(session_id, 4, "or ")
    await feeds.publish(session_id, 2)
    # The new driver is given what follows that event in mid-block; its predecessor had said the beginning.
    await feeds.watching.publish_delta(session_id, 1, TURN, 1, 1, 7, "two", False)
    await block_is(feeds, session_id, "one or two")
    await feeds.watching.publish_events(session_id, [event(session_id, 3)])
    async with asyncio.timeout(5):
        while (await feeds.driving.block(session_id)) != Delta(
            BlockKey(TURN, 1, 1), 0, "one or two", False, 1
        ):
            await asyncio.sleep(0.02)
    await feeds.watching.publish_events(session_id, [event(session_id, 4, **completed(1, "one or two"))])
    await block_is(feeds, session_id, None)


@across_valkey
async def test_a_driver_that_thaws_takes_nothing_from_its_successor(feeds: Feeds, session_id: UUID):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        await feeds.watching.publish_delta(session_id, 1, TURN, 1, 1, 0, "one two ", False)
        # What the old driver had not published when it was frozen.
        await feeds.delta(session_id, 0, "one ")
        await until(subscription, lambda frames: Delta(BlockKey(TURN, 1, 1), 0, "one ", False, 1) in frames)
        await feeds.watching.publish_delta(session_id, 1, TURN, 1, 1, 8, "three", False)
        found = await feeds.watching.block(session_id)
        assert found is not None
        assert (found.offset, found.text) == (0, "one two three")


@across_valkey
async def test_a_driver_elsewhere_is_woken(feeds: Feeds, session_id: UUID):
    woken: asyncio.Queue[UUID] = asyncio.Queue()
    feeds.watching.on_wake(woken.put_nowait)
    async with asyncio.timeout(5):
        while woken.empty():
            await feeds.driving.wake_driver(session_id)
            await asyncio.sleep(0.05)
    assert woken.get_nowait() == session_id


async def test_what_a_user_does_on_another_replica_leaves_the_open_block_alone(
    feeds: Feeds, session_id: UUID
):
    async with feeds.driving.subscribe(session_id) as subscription:
        await feeds.delta(session_id, 0, "one ")
        # A message, an interrupt or an answer was taken by the other replica, which publishes its event.
        async with asyncio.timeout(10):
            while 2 not in sequences(await subscription.take(0.1)):
                await feeds.watching.publish_events(session_id, [event(session_id, 2)])
        await feeds.delta(session_id, 4, "two")
        found = await feeds.driving.block(session_id)
        assert found is not None
        assert (found.offset, found.text) == (0, "one two")


async def test_a_queue_is_bounded_in_bytes_too(
    feeds: Feeds, session_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subscriptions, "QUEUE_BYTES", 10_000)
    async with feeds.driving.subscribe(session_id) as subscription:
        for sequence in range(2, 7):
            await feeds.publish(session_id, sequence, **completed(sequence, "x" * 4000))
        assert subscription.overflowed
        held = [frame for frame in await subscription.take(1.0) if isinstance(frame, EventsFrame)]
        assert sum(frame.size_bytes for frame in held) < 15_000


@pytest.mark.chaos
@across_valkey
async def test_what_is_published_first_after_a_quiet_loss_arrives(
    feeds: Feeds, session_id: UUID, own_valkey: Valkey
):
    async with feeds.watching.subscribe(session_id) as subscription:
        await listening(feeds, session_id, subscription)
        assert feeds.redis is not None and own_valkey.pid is not None
        before = own_valkey.pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(10):
            while True:
                try:
                    # The one that hears is there again. The one that tells has had nothing to tell.
                    if dict(await feeds.redis.pubsub_numsub(f"aiagent:session:{session_id}")).popitem()[1]:
                        break
                except UNAVAILABLE:
                    await asyncio.sleep(0.02)
        await feeds.delta(session_id, 0, "first")
        frames = await until(subscription, lambda frames: any(isinstance(frame, Delta) for frame in frames))
        assert [frame.text for frame in frames if isinstance(frame, Delta)] == ["first"]
