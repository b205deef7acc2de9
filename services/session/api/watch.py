"""`WatchSession` and the waiting calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any
from uuid import UUID

from aiagent.session.v1 import session_service_pb2 as pb
from services.kernel.context import current_caller, current_service
from services.kernel.grpc import accept_stream, end_if_unread
from services.kernel.identity import Caller
from services.session.domain.errors import watcher_too_slow
from services.session.domain.gate import BlockKey, Delta
from services.session.usecases.waiting import Waited, Waiting
from services.session.usecases.watch import WatchBatch, Watching, WatchRequest


class WatchApi:
    """Maps watching and waiting."""

    def __init__(self, watching: Watching, waiting: Waiting, unread_seconds: float) -> None:
        """Args: watching, waiting: the use cases; unread_seconds: how long a response may wait for its watcher."""
        self._watching = watching
        self._waiting = waiting
        self._unread_seconds = unread_seconds

    def place(
        self, caller: Caller, request: pb.WaitTurnRequest | pb.QuerySessionRequest
    ) -> AbstractContextManager[None]:
        """Counts a call that may wait as one of the caller's; one that only looks, or a service's, is not counted."""
        looks = request.HasField("wait_seconds") and request.wait_seconds == 0
        if looks or current_service() is not None:
            return nullcontext()
        return self._watching.place(caller.user_id)

    async def wait(self, caller: Caller, session_id: UUID, turn_id: UUID, wait_seconds: int | None) -> Waited:
        """Waits for a turn."""
        return await self._waiting.wait(caller, session_id, turn_id, wait_seconds)

    async def stream(
        self, request: pb.WatchSessionRequest, context: Any
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        """Streams what happens in a session."""
        cursor = request.cursor
        block, offset = None, 0
        if cursor.HasField("delta"):
            block = BlockKey(UUID(cursor.delta.turn_id), cursor.delta.attempt, cursor.delta.block)
            offset = cursor.delta.text_offset
        wanted = WatchRequest(
            session_id=UUID(request.session_id),
            sequence=cursor.sequence,
            block=block,
            offset=offset,
            exclude_deltas=request.exclude_deltas,
            until_idle=request.until_idle,
        )
        end_if_unread(self._unread_seconds, watcher_too_slow)
        accepted = False
        counted = current_service() is None
        async with aclosing(self._watching.watch(current_caller(), wanted, counted=counted)) as batches:
            async for batch in batches:
                if not accepted:
                    accepted = True
                    await accept_stream(context)
                response = _response(batch)
                batch.items.clear()
                yield response


def _response(batch: WatchBatch) -> pb.WatchSessionResponse:
    response = pb.WatchSessionResponse(
        items=[_item(item) if isinstance(item, Delta) else item.item for item in batch.items],  # type: ignore[misc]  # an event's item is a WatchItem
        head_sequence=batch.head,
    )
    response.cursor.sequence = batch.sequence
    if batch.block is not None:
        delta = response.cursor.delta
        delta.turn_id = str(batch.block.turn_id)
        delta.attempt, delta.block = batch.block.attempt, batch.block.block
        delta.text_offset = batch.offset
    return response


def _item(delta: Delta) -> pb.WatchItem:
    return pb.WatchItem(
        delta=pb.TextDelta(
            turn_id=str(delta.key.turn_id),
            attempt=delta.key.attempt,
            block=delta.key.block,
            text_offset=delta.offset,
            text=delta.text,
            thinking=delta.thinking,
        )
    )
