"""Watchers that keep all they receive, come and go, and resume by their cursor."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import grpc

from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from tests.e2e.conftest import User

from .calling import AGAIN, Statuses
from .records import Seen, WatcherRecord

_PAUSES_SECONDS = (0.1, 2.0)
"""Between two tries: the first, and the longest after several in vain."""


def digest(event: session_event_pb2.SessionEvent) -> str:
    """Tells two events apart by all that is in them."""
    return hashlib.sha256(event.SerializeToString(deterministic=True)).hexdigest()[:16]


class Watcher:
    """Follows a session from its beginning, over any number of connections; judges nothing."""

    def __init__(
        self,
        user: User,
        statuses: Statuses,
        name: str,
        session_id: str,
        *,
        deltas: bool = True,
        on_event: Callable[[session_event_pb2.SessionEvent], None] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            user: Whose session it is.
            statuses: Counts how streams ended.
            name: For the record.
            session_id: The session.
            deltas: Whether deltas are wanted.
            on_event: Is told of every event.
        """
        self.record = WatcherRecord(name, session_id, deltas)
        self._user = user
        self._statuses = statuses
        self._on_event = on_event
        self._cursor = pb.WatchCursor()
        self._task: asyncio.Task[None] | None = None

    @property
    def here(self) -> bool:
        """Whether it is watching."""
        return self._task is not None

    def come(self) -> None:
        """Watches until `go`."""
        assert self._task is None
        self._task = asyncio.create_task(self._follow(until_idle=False), name=f"watcher-{self.record.name}")

    async def go(self) -> None:
        """Hangs up, in the middle of whatever comes."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def finish(self, seconds: float) -> None:
        """Reads what is left, up to the log's end."""
        await self.go()
        try:
            async with asyncio.timeout(seconds):
                await self._follow(until_idle=True)
        except (TimeoutError, grpc.aio.AioRpcError):
            return
        self.record.finished = True

    async def _follow(self, *, until_idle: bool) -> None:
        pause, longest = _PAUSES_SECONDS
        while True:
            request = pb.WatchSessionRequest(
                session_id=self.record.session_id,
                cursor=self._cursor,
                exclude_deltas=not self.record.deltas,
                until_idle=until_idle,
            )
            self.record.connections += 1
            call = self._user.sessions.WatchSession(request, metadata=self._user.metadata)
            try:
                async for response in call:
                    self._take(response)
                    pause, _ = _PAUSES_SECONDS
            except grpc.aio.AioRpcError as error:
                self._statuses.note("WatchSession", error)
                if error.code() not in AGAIN and error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            else:
                if until_idle:
                    return
            finally:
                call.cancel()
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    def _take(self, response: pb.WatchSessionResponse) -> None:
        # Whole or not at all: the cursor is the response's, so what is cut off before it was taken comes again.
        self._cursor = response.cursor
        for item in response.items:
            if item.WhichOneof("kind") == "delta":
                self.record.seen.append(_piece(item.delta))
            else:
                self.record.seen.append(_event(item.event))
                if self._on_event is not None:
                    self._on_event(item.event)


def _piece(delta: pb.TextDelta) -> Seen:
    block = (delta.turn_id, delta.attempt, delta.block)
    return Seen(time.time(), block=block, offset=delta.text_offset, text=delta.text)


def _event(event: session_event_pb2.SessionEvent) -> Seen:
    payload: Any = event.payload
    completes = None
    if payload.HasField("assistant_message") and not payload.assistant_message.parent_tool_use_id:
        message = payload.assistant_message
        completes = (event.turn_id, message.attempt, message.block)
    return Seen(time.time(), event.sequence, digest(event), completes)
