"""Following a session: a stream that survives its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import grpc

from aiagent.events.v1.session_event_pb2 import SessionEvent
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2 import DeltaPosition, TextDelta, WatchCursor
from aiagent_client.connection import Connection, Metadata, backoff, is_transport_failure
from aiagent_client.errors import ApiError, StreamError, UnauthenticatedError, UnavailableError

if TYPE_CHECKING:
    from aiagent.session.v1.session_service_pb2_grpc import SessionServiceAsyncStub

WatchedItem = SessionEvent | TextDelta

# The server sends at least a checkpoint every 15 s: three of them missing is a dead connection.
SILENCE_SECONDS: Final = 45.0
_FIRST_CONNECTION_ATTEMPTS: Final = 5
_GAPS: Final = 3
_RENEWALS: Final = 3
_RESUMABLE: Final = {"WATCHER_TOO_SLOW", "DRAINING"}


class _GapError(Exception):
    """The stream left something out."""


class Watch:
    """What happens in a session, as an async iterator of durable events and pieces of text.

    Events come in order, each once. Pieces of a block follow each other without gap or overlap. Lost connections,
    expired tokens and servers that shut down are bridged: the iterator goes on where it stood. It ends when the
    server ends it (`until_idle`), and raises ApiError for what resuming cannot mend: the session is not there or
    was deleted, the login has ended, or the server stayed away for `give_up_after` seconds.

    `cursor` is where the iterator stands after the item last returned: store it to go on later, in another process.
    `head_sequence` is the log's last sequence as far as the server told.
    """

    def __init__(
        self,
        connection: Connection,
        stub: SessionServiceAsyncStub,
        session_id: str,
        *,
        cursor: WatchCursor | None = None,
        exclude_deltas: bool = False,
        until_idle: bool = False,
        give_up_after: float = 300.0,
        silence: float = SILENCE_SECONDS,
        on_reconnect: Callable[[ApiError | None], None] | None = None,
    ) -> None:
        self.session_id = session_id
        self.cursor = WatchCursor()
        if cursor is not None:
            self.cursor.CopyFrom(cursor)
        self.head_sequence = 0
        self._connection = connection
        self._stub = stub
        self._exclude_deltas = exclude_deltas
        self._until_idle = until_idle
        self._give_up_after = give_up_after
        self._silence = silence
        self._on_reconnect = on_reconnect
        # Set after a gap: the server is asked for the open block from its beginning, and what is known of it is cut.
        self._ask_block_anew = False
        self._items = self._follow()

    def __aiter__(self) -> AsyncIterator[WatchedItem]:
        return self

    async def __anext__(self) -> WatchedItem:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Ends the stream. The turn it showed goes on."""
        await self._items.aclose()

    async def _follow(self) -> AsyncGenerator[WatchedItem]:
        loop = asyncio.get_running_loop()
        connected = False
        failures = gaps = 0
        last_response = loop.time()
        while True:
            failure: ApiError | None = None
            try:
                async with aclosing(self._connection.stream(self._open, silence=self._silence)) as responses:
                    async for response in responses:
                        connected = True
                        failures = 0
                        last_response = loop.time()
                        self.head_sequence = max(self.head_sequence, response.head_sequence)
                        for item in self._take(response):
                            yield item
                        gaps = 0
                        self._ask_block_anew = False
                if self._until_idle:
                    return
                failure = UnavailableError("the server ended the stream", code=grpc.StatusCode.UNAVAILABLE)
            except _GapError as error:
                gaps += 1
                if gaps > _GAPS:
                    raise StreamError(
                        f"the stream of session {self.session_id} is broken: {error}"
                    ) from error
                self._ask_block_anew = True
            except ApiError as error:
                if not _resumable(error, renewable=connected and failures < _RENEWALS):
                    raise
                failure = error
            failures += 1
            if failure is not None:
                self._check_patience(failure, connected, failures, loop.time() - last_response)
            if self._on_reconnect is not None:
                self._on_reconnect(failure)
            # The first resumption comes at once: most often the server only asked for it.
            if failures > 1 or not connected:
                await asyncio.sleep(backoff(failures, failure.retry_after if failure else None))

    def _check_patience(self, failure: ApiError, connected: bool, failures: int, away: float) -> None:
        if not connected and failures >= _FIRST_CONNECTION_ATTEMPTS:
            raise failure
        if away > self._give_up_after:
            raise failure

    def _open(self, metadata: Metadata) -> object:
        request = pb.WatchSessionRequest(
            session_id=self.session_id,
            cursor=WatchCursor(sequence=self.cursor.sequence) if self._ask_block_anew else self.cursor,
            exclude_deltas=self._exclude_deltas,
            until_idle=self._until_idle,
        )
        return self._stub.WatchSession(request, metadata=metadata)

    def _take(self, response: pb.WatchSessionResponse) -> Iterator[WatchedItem]:
        """Yields the new items of a response, pieces of one block joined, and moves the cursor with each."""
        pending: TextDelta | None = None
        for item in response.items:
            if item.WhichOneof("kind") == "delta":
                piece = self._cut(item.delta, pending)
                if piece is None:
                    continue
                if pending is not None and _follows(pending, piece):
                    pending.text += piece.text
                    continue
                if pending is not None:
                    yield self._pass_delta(pending)
                pending = piece
                continue
            if pending is not None:
                yield self._pass_delta(pending)
                pending = None
            if item.event.sequence <= self.cursor.sequence:
                continue
            if item.event.sequence != self.cursor.sequence + 1:
                raise _GapError(f"event {item.event.sequence} came after {self.cursor.sequence}")
            self._pass_event(item.event)
            yield item.event
        if pending is not None:
            yield self._pass_delta(pending)

    def _cut(self, delta: TextDelta, pending: TextDelta | None) -> TextDelta | None:
        """Returns what of a piece is new; None when nothing is."""
        end = _end_of(pending, delta)
        if end is None:
            end = _end_of_cursor(self.cursor, delta)
        piece = TextDelta()
        piece.CopyFrom(delta)
        if end is None:
            # Another block than the one before begins anew.
            if delta.text_offset > 0:
                raise _GapError(f"block {delta.block} begins at {delta.text_offset}")
            return piece
        if delta.text_offset > end:
            raise _GapError(f"block {delta.block} goes on at {delta.text_offset} after {end}")
        if delta.text_offset + len(delta.text) <= end:
            return None
        piece.text = delta.text[end - delta.text_offset :]
        piece.text_offset = end
        return piece

    def _pass_delta(self, delta: TextDelta) -> TextDelta:
        self.cursor.delta.CopyFrom(
            DeltaPosition(
                turn_id=delta.turn_id,
                attempt=delta.attempt,
                block=delta.block,
                text_offset=delta.text_offset + len(delta.text),
            )
        )
        return delta

    def _pass_event(self, event: SessionEvent) -> None:
        self.cursor.sequence = event.sequence
        if not self.cursor.HasField("delta"):
            return
        kind = event.payload.WhichOneof("kind")
        message = event.payload.assistant_message
        closes = (
            kind == "assistant_message"
            and not message.parent_tool_use_id
            and event.turn_id == self.cursor.delta.turn_id
            and (message.attempt, message.block) >= (self.cursor.delta.attempt, self.cursor.delta.block)
        )
        if closes or kind in ("attempt_started", "turn_ended"):
            self.cursor.ClearField("delta")


def _resumable(error: ApiError, *, renewable: bool) -> bool:
    if isinstance(error, UnauthenticatedError):
        # A proxy ends a stream whose token it no longer takes without giving a reason. Where new tokens are refused
        # again and again, yet another one will not help.
        return renewable and error.reason in ("", "TOKEN_EXPIRED", "TOKEN_INVALID")
    return error.reason in _RESUMABLE or isinstance(error, UnavailableError) or is_transport_failure(error)


def _key(piece: TextDelta | DeltaPosition) -> tuple[str, int, int]:
    return piece.turn_id, piece.attempt, piece.block


def _end_of(pending: TextDelta | None, delta: TextDelta) -> int | None:
    if pending is None or _key(pending) != _key(delta):
        return None
    return pending.text_offset + len(pending.text)


def _end_of_cursor(cursor: WatchCursor, delta: TextDelta) -> int | None:
    if not cursor.HasField("delta") or _key(cursor.delta) != _key(delta):
        return None
    return cursor.delta.text_offset


def _follows(pending: TextDelta, piece: TextDelta) -> bool:
    return _end_of(pending, piece) == piece.text_offset
