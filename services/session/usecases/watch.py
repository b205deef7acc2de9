"""Watches a session: history from the database, then what is new, through the watcher's own gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.identity import Caller
from services.session.domain.entities import LogEvent, Session
from services.session.domain.errors import (
    cursor_ahead,
    draining,
    session_deleted,
    token_expired,
    too_many_watches,
    watcher_too_slow,
)
from services.session.domain.gate import BlockKey, Delta, Gate, GateEvent, NeedBlock, NeedRead
from services.session.usecases.contents import ContentKeeper
from services.session.usecases.ports import (
    DeletedFrame,
    DrainFrame,
    EventsFrame,
    Frame,
    HeadFrame,
    SessionStore,
    SubscriptionPort,
    WatchFeedPort,
)

_log = structlog.get_logger(__name__)
CHECKPOINT_SECONDS = 15.0
READ_EVENTS = 200
RESPONSE_BYTES = 128 * 1024
"""The size at which what has piled up goes out, and how much is read at once. A watcher that takes nothing costs a few
times as much: what was read for it, as message and as bytes, here and at the edge."""
PIECE_CHARACTERS = 64 * 1024
"""Code points of the longest delta."""
MAX_OVERFLOWS = 20


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What to watch, and from where."""

    session_id: UUID
    sequence: int
    block: BlockKey | None
    offset: int
    exclude_deltas: bool
    until_idle: bool


@dataclass(slots=True)
class WatchBatch:
    """What goes out together; empty for a checkpoint."""

    items: list[Delta | GateEvent] = field(default_factory=list)
    sequence: int = 0
    block: BlockKey | None = None
    offset: int = 0
    head: int = 0


class Watching:
    """The use cases."""

    def __init__(
        self,
        store: SessionStore,
        feed: WatchFeedPort,
        clock: Clock,
        contents: ContentKeeper,
        as_gate_event: Callable[[LogEvent], GateEvent],
        max_per_user: int,
    ) -> None:
        """Takes what it works with.

        Args:
            store: The database.
            feed: What is new.
            clock: For times.
            contents: Texts that are too large for the log.
            as_gate_event: Makes items of events.
            max_per_user: How many streams and waiting calls a user may have open here.
        """
        self._store = store
        self._feed = feed
        self._clock = clock
        self._contents = contents
        self._as_gate_event = as_gate_event
        self._max_per_user = max_per_user
        self._open: Counter[UUID] = Counter()

    async def watch(
        self, caller: Caller, request: WatchRequest, *, counted: bool = True
    ) -> AsyncGenerator[WatchBatch]:
        """Yields what happens in a session, after the cursor. Close it: the place is held until then.

        Args:
            caller: Who watches.
            request: What, and from where.
            counted: False for a service that watches for its user, who must not stand in its way.

        Raises:
            ServiceError: as documented at SessionService.WatchSession.
        """
        await self.check(caller, request.session_id)
        with self.place(caller.user_id) if counted else nullcontext():
            async with aclosing(self._watch(caller, request)) as batches:
                async for batch in batches:
                    yield batch

    @contextmanager
    def place(self, user_id: UUID) -> Iterator[None]:
        """Counts a stream, or a call that waits, as one of the user's while the block runs.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with TOO_MANY_WATCHES.
        """
        if self._open[user_id] >= self._max_per_user:
            raise too_many_watches(self._max_per_user)
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    async def _watch(self, caller: Caller, request: WatchRequest) -> AsyncGenerator[WatchBatch]:
        async with self._feed.subscribe(request.session_id) as subscription:
            session = await self.check(caller, request.session_id)
            if request.sequence > session.last_sequence:
                raise cursor_ahead(session.last_sequence)
            watcher = _Watcher(
                self, caller, request, subscription, Gate(request.sequence, request.block, request.offset)
            )
            watcher.head = session.last_sequence
            async for batch in watcher.run():
                yield batch

    async def check(self, caller: Caller, session_id: UUID) -> Session:
        """Returns the session.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND: it is not there, or not the caller's.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.get_session(session_id)

    async def read(
        self, caller: Caller, session_id: UUID, after: int, limit: int
    ) -> tuple[list[GateEvent], bool]:
        """Reads a portion of events for a gate, and says whether there may be more."""
        async with self._store.begin(caller) as transaction:
            events = await transaction.list_events(session_id, None, after, limit, RESPONSE_BYTES)
        more = len(events) >= limit or sum(len(event.payload) for event in events) >= RESPONSE_BYTES
        return [self._as_gate_event(event) for event in events], more

    async def idle(self, caller: Caller, session_id: UUID) -> bool:
        """Whether no turn is open."""
        async with self._store.begin(caller) as transaction:
            return not await transaction.open_turns(session_id)

    async def block(self, session_id: UUID) -> Delta | None:
        """The text so far of the session's open block."""
        return await self._feed.block(session_id)

    def text(self, session_id: UUID, content_id: UUID) -> AsyncGenerator[str, None]:
        """A text that is too large for the log, piece by piece."""
        return self._contents.pieces(session_id, content_id)

    def now(self) -> datetime:
        """The time."""
        return self._clock.now()

    def monotonic(self) -> float:
        """Seconds, for measuring how long something took."""
        return self._clock.monotonic()


class _Watcher:
    """One call of WatchSession."""

    def __init__(
        self,
        watching: Watching,
        caller: Caller,
        request: WatchRequest,
        subscription: SubscriptionPort,
        gate: Gate,
    ) -> None:
        self._watching = watching
        self._caller = caller
        self._request = request
        self._subscription = subscription
        self._gate = gate
        self.head = 0
        self._overflows = 0
        self._known_after = request.sequence
        self._out: list[Delta | GateEvent] = []
        self._size = 0

    def _add(self, items: list[Delta | GateEvent]) -> None:
        for item in items:
            self._size += item.size_bytes
        self._out += items

    def _batch(self) -> WatchBatch:
        items = self._out
        self._out, self._size = [], 0
        if self._request.exclude_deltas:
            items = [item for item in items if isinstance(item, GateEvent)]
        gate = self._gate
        self.head = max(self.head, gate.sequence)
        return WatchBatch(items, gate.sequence, gate.key, gate.offset, self.head)

    async def run(self) -> AsyncIterator[WatchBatch]:
        target = self.head
        async for batch in self._catch_up():
            yield batch
        async for batch in self._join_block():
            yield batch
        if self._out:
            yield self._batch()
        looked_at = -1
        due = self._watching.monotonic() + CHECKPOINT_SECONDS
        while True:
            # Only an event can end a turn: between events nothing has to be asked.
            if self._request.until_idle and looked_at != self._gate.sequence >= target:
                looked_at = self._gate.sequence
                if await self._finished():
                    async for batch in self._catch_up():
                        yield batch
                    return
            left = (self._caller.token_expire_time - self._watching.now()).total_seconds()
            if left <= 0:
                raise token_expired()
            wait = max(0.0, due - self._watching.monotonic())
            frames = await self._subscription.take(min(wait, left))
            if self._lagging():
                async for batch in self._catch_up():
                    yield batch
                async for batch in self._join_block():
                    yield batch
            async for batch in self._pass(frames):
                yield batch
            if self._out or self._watching.monotonic() >= due:
                yield self._batch()
                due = self._watching.monotonic() + CHECKPOINT_SECONDS

    def _lagging(self) -> bool:
        """Whether frames were lost; a watcher that loses them again and again is sent away."""
        if not self._subscription.overflowed:
            return False
        self._subscription.overflowed = False
        self._overflows += 1
        if self._overflows > MAX_OVERFLOWS:
            raise watcher_too_slow()
        return True

    async def _pass(self, frames: list[Frame]) -> AsyncIterator[WatchBatch]:
        """Lets frames through the gate, reading the database where something is missing before them."""
        for frame in frames:
            match frame:
                case DrainFrame() | DeletedFrame():
                    if self._out:
                        yield self._batch()
                    raise (
                        draining()
                        if isinstance(frame, DrainFrame)
                        else session_deleted(self._request.session_id)
                    )
                case EventsFrame():
                    for event in frame.events:
                        if self._passes(event):
                            continue
                        async for batch in self._reach(event.sequence - 1):
                            yield batch
                        async for batch in self._event(event):
                            yield batch
                case HeadFrame():
                    self.head = max(self.head, frame.sequence)
                    async for batch in self._reach(frame.sequence):
                        yield batch
                case Delta() if not (self._request.exclude_deltas or self._joins(frame)):
                    async for batch in self._reach(frame.after_sequence):
                        yield batch
                    async for batch in self._piece(frame):
                        yield batch
            if self._size >= RESPONSE_BYTES:
                yield self._batch()

    async def _reach(self, sequence: int) -> AsyncIterator[WatchBatch]:
        """Reads the database unless everything up to an event has passed."""
        if sequence <= self._gate.sequence:
            return
        async for batch in self._catch_up():
            yield batch
        if sequence > self._gate.sequence:
            # The log has nothing of what was announced: it is gone, or the frame is nobody's.
            await self._still_there()

    def _passes(self, event: GateEvent) -> bool:
        """Lets an event through the gate for which nothing has to be read: nearly all of them."""
        whole = event.content_id is None or self._request.exclude_deltas
        if not whole or event.sequence > self._gate.sequence + 1:
            return False
        self._add(self._gate.event(event))
        return True

    def _joins(self, delta: Delta) -> bool:
        """Does the same for a piece of a block."""
        if not self._known_after <= delta.after_sequence <= self._gate.sequence:
            return False
        if len(delta.text) > PIECE_CHARACTERS:
            return False
        try:
            self._add(self._gate.delta(delta))
        except NeedBlock:
            return False
        return True

    async def _event(self, event: GateEvent) -> AsyncIterator[WatchBatch]:
        """Lets the next event through the gate; any other has passed before, or is nobody's."""
        if event.sequence != self._gate.sequence + 1:
            return
        if event.content_id is not None and not self._request.exclude_deltas:
            async for batch in self._fill(event, event.content_id):
                yield batch
        self._add(self._gate.event(event))

    async def _fill(self, event: GateEvent, content_id: UUID) -> AsyncIterator[WatchBatch]:
        """Sends what the client lacks of a block whose event holds only the beginning of its text."""
        key, offset = event.completes, 0
        if key is None or (key == self._gate.key and self._gate.offset == event.content_bytes):
            # As many code points as bytes: it has all of them.
            return
        try:
            async with aclosing(self._watching.text(self._request.session_id, content_id)) as pieces:
                async for text in pieces:
                    piece = Delta(key, offset, text, event.thinking, self._gate.sequence)
                    offset += len(text)
                    async for batch in self._offer(piece):
                        yield batch
        except ServiceError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            await self._still_there()
            _log.error("a text is not in the blob store; its beginning is sent", content_id=str(content_id))

    async def _piece(self, delta: Delta) -> AsyncIterator[WatchBatch]:
        """Lets a piece of a block through the gate; one that follows a gap, with the block's text so far before it."""
        try:
            async for batch in self._offer(delta):
                yield batch
        except NeedRead:
            return
        except NeedBlock:
            async for batch in self._join_block():
                yield batch
            with suppress(NeedBlock):
                async for batch in self._offer(delta):
                    yield batch

    async def _join_block(self) -> AsyncIterator[WatchBatch]:
        """Brings in the text so far of the open block."""
        if self._request.exclude_deltas:
            return
        block = await self._watching.block(self._request.session_id)
        # What is missing before it is on its way: the block's own event brings all of it.
        with suppress(NeedRead, NeedBlock):
            if block is not None:
                async for batch in self._offer(block):
                    yield batch

    async def _offer(self, delta: Delta) -> AsyncIterator[WatchBatch]:
        """Offers a piece to the gate; a long one in several, so that none is too large for a response."""
        if delta.after_sequence < self._known_after and delta.key != self._gate.key:
            await self._recall(delta.after_sequence)
        for piece in delta.split(PIECE_CHARACTERS):
            self._add(self._gate.delta(piece))
            if self._size >= RESPONSE_BYTES:
                yield self._batch()

    async def _still_there(self) -> None:
        try:
            await self._watching.check(self._caller, self._request.session_id)
        except ServiceError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                raise session_deleted(self._request.session_id) from error
            raise

    async def _finished(self) -> bool:
        return await self._watching.idle(self._caller, self._request.session_id)

    async def _recall(self, after: int) -> None:
        """Learns which blocks were completed before the cursor, after an event: a piece that is older than what the
        client has may have been on its way for long, or be the last word of a replica that is no more."""
        first = after
        while after < self._known_after:
            limit = min(READ_EVENTS, self._known_after - after)
            events, _ = await self._watching.read(self._caller, self._request.session_id, after, limit)
            if not events:
                break
            for event in events:
                self._gate.observe(event)
            after = events[-1].sequence
        self._known_after = first

    async def _catch_up(self) -> AsyncIterator[WatchBatch]:
        """Reads the database up to its end."""
        while True:
            events, more = await self._watching.read(
                self._caller, self._request.session_id, self._gate.sequence, READ_EVENTS
            )
            for event in events:
                if not self._passes(event):
                    async for batch in self._event(event):
                        yield batch
                if self._size >= RESPONSE_BYTES:
                    yield self._batch()
            at_end = not more or events[-1].sequence > self._gate.sequence
            # Whoever waits for the response to be taken holds nothing but the response.
            events.clear()
            if self._out:
                yield self._batch()
            if at_end:
                return
