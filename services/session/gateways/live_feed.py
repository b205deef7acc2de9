"""The live feed: tells watchers and drivers what is new, in this process directly, in others through Redis.

A hint. What is lost here is found in the database: by the gate, which sees the gap, or by the poll of the heads, which
sees a lost last event too. Nothing here ever makes a caller wait for Redis, or fail with it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import structlog
from redis.asyncio import Redis

from aiagent.session.v1 import session_service_pb2
from services.kernel.clock import SystemClock
from services.kernel.context import detached
from services.kernel.errors import ServiceError
from services.kernel.ids import new_id
from services.kernel.lifecycle import Drain
from services.kernel.redis import UNAVAILABLE
from services.kernel.redis.wire import Command, Wire, Word, open_wire
from services.kernel.supervision import supervise
from services.session import codec
from services.session.domain.entities import LogEvent
from services.session.domain.gate import BlockKey, Delta, GateEvent
from services.session.gateways.feed_codec import delta_item, event_item, gate_event, read_delta
from services.session.gateways.open_blocks import BLOCK_SECONDS, OpenBlocks, furthest, read_snapshot
from services.session.gateways.subscriptions import Subscription
from services.session.usecases.ports import DeletedFrame, DrainFrame, EventsFrame, Frame, HeadFrame

_log = structlog.get_logger(__name__)
POLL_SECONDS = 1.0
OUTGOING = 10_000
OUTGOING_BYTES = 64 * 1024 * 1024
PATIENCE_SECONDS = 0.25
"""How long a watcher waits for Redis, which only has what is nice to have; then for a while none does."""
_RECONNECT_SECONDS = 0.5
_DRIVERS = "aiagent:drivers"

Heads = Callable[[Sequence[UUID]], Awaitable[dict[UUID, int]]]
"""The last sequence of each session that is there; deleted ones are left out."""


def _channel(session_id: UUID) -> str:
    return f"aiagent:session:{session_id}"


def _block_key(session_id: UUID) -> str:
    return f"aiagent:session:{session_id}:block"


class LiveFeed:
    """The live feed of one replica."""

    def __init__(self, redis: Redis | None, heads: Heads, drain: Drain) -> None:
        """Args: redis: None to do without; heads: reads the heads of sessions; drain: tells of the shutdown."""
        self._redis = redis
        self._heads = heads
        self._drain = drain
        self._origin = new_id().bytes
        self._subscriptions: dict[UUID, set[Subscription]] = {}
        self._blocks = OpenBlocks()
        self._told: dict[UUID, int] = {}
        self._outgoing: deque[Command] = deque()
        self._outgoing_bytes = 0
        self._to_send = asyncio.Event()
        self._wake: Callable[[UUID], None] | None = None
        self._listening: Wire | None = None
        self._sending: Wire | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._away: set[str] = set()
        self._ask_again = 0.0

    def on_wake(self, wake: Callable[[UUID], None]) -> None:
        """Sets who is told that a driver is needed."""
        self._wake = wake

    async def start(self) -> None:
        """Starts to listen and to poll."""
        loops: list[Callable[[], Awaitable[None]]] = [self._poll, self._tell_of_drain]
        if self._redis is not None:
            loops += [partial(self._listen, self._redis), partial(self._send, self._redis)]
        names = ("heads", "drain", "listen", "send")
        self._tasks = [
            asyncio.create_task(supervise(f"live-feed-{name}", loop, SystemClock()), context=detached())
            for name, loop in zip(names, loops, strict=False)
        ]

    async def stop(self) -> None:
        """Stops all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Publishing

    async def publish_events(self, session_id: UUID, events: Sequence[LogEvent]) -> None:
        """Publishes events that are committed."""
        if not events:
            return
        items = [event_item(codec.event(event)) for event in events]
        gate_events = tuple(gate_event(item) for item in items)
        if self._blocks.close(session_id, gate_events):
            self._queue("DEL", _block_key(session_id))
        # Whoever takes the session over is given what follows these events: the text before them must not go with us.
        self._store_blocks(session_id)
        self._offer(session_id, _frame(gate_events))
        if session_id in self._subscriptions:
            self._told[session_id] = max(self._told.get(session_id, 0), events[-1].sequence)
        frame = session_service_pb2.WatchSessionResponse(items=items)
        self._queue("PUBLISH", _channel(session_id), self._origin + frame.SerializeToString())

    async def publish_delta(
        self,
        session_id: UUID,
        after_sequence: int,
        turn_id: UUID,
        attempt: int,
        block: int,
        text_offset: int,
        text: str,
        thinking: bool,
    ) -> None:
        """Publishes a piece of an open block, and keeps the block's text so far for those who join."""
        key = BlockKey(turn_id, attempt, block)
        delta = Delta(key, text_offset, text, thinking, after_sequence)
        # To the others first: theirs is the longer way.
        frame = session_service_pb2.WatchSessionResponse(items=[delta_item(delta)])
        frame.cursor.sequence = after_sequence
        self._queue("PUBLISH", _channel(session_id), self._origin + frame.SerializeToString())
        self._offer(session_id, delta)
        snapshot = self._blocks.add(session_id, delta)
        if snapshot is not None:
            self._queue("SET", _block_key(session_id), snapshot, "EX", BLOCK_SECONDS)

    def _store_blocks(self, *session_ids: UUID) -> None:
        for session_id, snapshot in self._blocks.unstored(*session_ids):
            self._queue("SET", _block_key(session_id), snapshot, "EX", BLOCK_SECONDS)

    async def wake_driver(self, session_id: UUID) -> None:
        """Wakes the session's driver on other replicas."""
        self._queue("PUBLISH", _DRIVERS, session_id.bytes)

    def _queue(self, *command: Word) -> None:
        if self._redis is None:
            return
        wire = self._sending
        if wire is not None and not (wire.lost or wire.unanswered or self._outgoing):
            # Nothing is before it: it goes now. What comes until its answer goes together.
            wire.send(command)
            self._to_send.set()
            return
        while len(self._outgoing) >= OUTGOING or self._outgoing_bytes >= OUTGOING_BYTES:
            # Redis is away, or far behind: watchers elsewhere find it in the database.
            self._outgoing_bytes -= _size(self._outgoing.popleft())
        self._outgoing.append(command)
        self._outgoing_bytes += _size(command)
        self._to_send.set()

    # Subscribing

    @asynccontextmanager
    async def subscribe(self, session_id: UUID) -> AsyncIterator[Subscription]:
        """Tells a watcher of everything published from now on."""
        subscription = Subscription(session_id)
        others = self._subscriptions.setdefault(session_id, set())
        others.add(subscription)
        try:
            if len(others) == 1:
                self._told.pop(session_id, None)
                if self._listening is not None:
                    self._listening.subscribe([_channel(session_id)])
            if self._drain.draining:
                subscription.offer(DrainFrame())
            yield subscription
        finally:
            others.discard(subscription)
            if not others and self._subscriptions.get(session_id) is others:
                del self._subscriptions[session_id]
                self._told.pop(session_id, None)
                if self._listening is not None:
                    self._listening.unsubscribe(_channel(session_id))

    async def block(self, session_id: UUID) -> Delta | None:
        """The text so far of the session's open block, if one is known."""
        stored = await self._stored_block(session_id)
        self._blocks.fill(session_id, stored)
        return furthest(self._blocks.get(session_id), stored)

    async def _stored_block(self, session_id: UUID) -> Delta | None:
        if self._redis is None or time.monotonic() < self._ask_again:
            return None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                stored = await self._redis.get(_block_key(session_id))
        except UNAVAILABLE:
            self._ask_again = time.monotonic() + POLL_SECONDS
            return None
        try:
            return read_snapshot(stored if isinstance(stored, bytes) else stored.encode()) if stored else None
        except Exception:
            _log.exception("a block's text so far cannot be read", session_id=str(session_id))
            return None

    def _offer(self, session_id: UUID, frame: Frame) -> None:
        for subscription in self._subscriptions.get(session_id, ()):
            subscription.offer(frame)

    # Redis

    def _note(self, connection: str, *, away: bool) -> None:
        before = bool(self._away)
        (self._away.add if away else self._away.discard)(connection)
        if away and not before:
            _log.warning("redis cannot be reached; watchers are fed from the database")
        elif before and not self._away:
            _log.warning("redis is back")

    async def _listen(self, redis: Redis) -> None:
        while True:
            try:
                async with open_wire(redis, self._read) as wire:
                    # From here on who subscribes does it at once; who did so before is in the list.
                    self._listening = wire
                    wire.subscribe((_DRIVERS, *map(_channel, self._subscriptions)))
                    await wire.execute([("PING",)])
                    self._note("listening", away=False)
                    while not await wire.wait_lost(POLL_SECONDS):
                        await wire.execute([("PING",)])
            except UNAVAILABLE:
                pass
            finally:
                self._listening = None
            self._note("listening", away=True)
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _read(self, channel: bytes, data: bytes) -> None:
        try:
            self._received(channel, data)
        except Exception:
            # What nobody here has written must not end the listening.
            _log.exception("a frame cannot be read", channel=channel)

    def _received(self, channel: bytes, data: bytes) -> None:
        name = channel.decode()
        if name == _DRIVERS:
            if self._wake is not None and len(data) == 16:
                self._wake(UUID(bytes=data))
            return
        if data.startswith(self._origin):
            return  # The gates here have passed it.
        session_id = UUID(name.removeprefix("aiagent:session:"))
        frame = session_service_pb2.WatchSessionResponse.FromString(data[len(self._origin) :])
        events = tuple(gate_event(item) for item in frame.items if item.HasField("event"))
        self._blocks.close(session_id, events)
        if events:
            self._offer(session_id, _frame(events))
        for item in frame.items:
            if item.HasField("delta"):
                self._offer(session_id, read_delta(item.delta, frame.cursor.sequence))

    async def _send(self, redis: Redis) -> None:
        while True:
            try:
                async with open_wire(redis, on_lost=self._to_send.set) as wire:
                    self._sending = wire
                    self._note("sending", away=False)
                    while await self._due(wire):
                        await wire.execute(self._next_commands())
            except UNAVAILABLE:
                pass
            finally:
                self._sending = None
            self._note("sending", away=True)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _due(self, wire: Wire) -> bool:
        """Waits until there is something to send, or the connection is lost; tells whether it is still there."""
        self._to_send.clear()
        if not (wire.lost or wire.unanswered or self._outgoing):
            await self._to_send.wait()
        return not wire.lost

    def _next_commands(self) -> list[Command]:
        """Takes what is to be sent next. Should it get lost now, watchers find it in the database."""
        commands = [self._outgoing.popleft() for _ in range(min(256, len(self._outgoing)))]
        self._outgoing_bytes -= sum(map(_size, commands))
        return commands

    # The database

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self._blocks.forget_old()
            for session_id in self._blocks.begun():
                self._blocks.fill(session_id, await self._stored_block(session_id))
            self._store_blocks()
            watched = list(self._subscriptions)
            if not watched:
                continue
            try:
                heads = await self._heads(watched)
            except ServiceError as error:
                _log.warning("heads cannot be read", reason=error.reason)
                continue
            for session_id in watched:
                last = heads.get(session_id)
                if last is None:
                    self._offer(session_id, DeletedFrame())
                elif last != self._told.get(session_id):
                    self._told[session_id] = last
                    self._offer(session_id, HeadFrame(last))

    async def _tell_of_drain(self) -> None:
        await self._drain.wait()
        for session_id in list(self._subscriptions):
            self._offer(session_id, DrainFrame())


def _size(command: Command) -> int:
    return sum(len(word) for word in command if isinstance(word, bytes))


def _frame(events: tuple[GateEvent, ...]) -> EventsFrame:
    return EventsFrame(events, sum(event.size_bytes for event in events))
