"""Following a session: a stream that survives its connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from aiagent.events.v1.session_event_pb2 import SessionEvent
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2 import DeltaPosition, TextDelta, WatchCursor
from aiagent_client.connection import Connection, Metadata
from aiagent_client.errors import ApiError
from aiagent_client.resuming import SILENCE_SECONDS, GapError, ResumingStream

if TYPE_CHECKING:
    from aiagent.session.v1.session_service_pb2_grpc import SessionServiceAsyncStub

WatchedItem = SessionEvent | TextDelta


class Watch(ResumingStream[WatchedItem]):
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
        self._stub = stub
        self._exclude_deltas = exclude_deltas
        self._until_idle = until_idle
        super().__init__(connection, give_up_after=give_up_after, silence=silence, on_reconnect=on_reconnect)

    @property
    def _what(self) -> str:
        return f"session {self.session_id}"

    def _finished(self) -> bool:
        return self._until_idle

    def _open(self, metadata: Metadata) -> object:
        request = pb.WatchSessionRequest(
            session_id=self.session_id,
            # The open block from its beginning; what is known of it is cut.
            cursor=WatchCursor(sequence=self.cursor.sequence) if self._after_gap else self.cursor,
            exclude_deltas=self._exclude_deltas,
            until_idle=self._until_idle,
        )
        return self._stub.WatchSession(request, metadata=metadata)

    def _take(self, response: pb.WatchSessionResponse) -> Iterator[WatchedItem]:
        """Yields the new items of a response, pieces of one block joined, and moves the cursor with each."""
        self.head_sequence = max(self.head_sequence, response.head_sequence)
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
                raise GapError(f"event {item.event.sequence} came after {self.cursor.sequence}")
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
                raise GapError(f"block {delta.block} begins at {delta.text_offset}")
            return piece
        if delta.text_offset > end:
            raise GapError(f"block {delta.block} goes on at {delta.text_offset} after {end}")
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
