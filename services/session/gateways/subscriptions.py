"""What one watcher is told: a queue that is bounded, and notices that no bound may cost."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

from services.session.domain.gate import Delta
from services.session.usecases.ports import DeletedFrame, DrainFrame, EventsFrame, Frame

QUEUE_FRAMES = 2000
QUEUE_BYTES = 8 * 1024 * 1024


@dataclass(eq=False)
class Subscription:
    """What one watcher is told.

    Bounded: a watcher that does not keep up loses frames, and learns that it did by `overflowed`, which it resets.
    A session's deletion and a drain it could read nowhere else: these are kept outside the queue.
    """

    session_id: UUID
    overflowed: bool = False
    _size_bytes: int = 0
    _frames: deque[Frame] = field(default_factory=deque)
    _ending: DrainFrame | DeletedFrame | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, frame: Frame) -> None:
        """Hands over a frame."""
        if isinstance(frame, DrainFrame | DeletedFrame):
            self._ending = self._ending or frame
            self._woken.set()
            return
        if len(self._frames) >= QUEUE_FRAMES or self._size_bytes >= QUEUE_BYTES:
            self._frames.clear()
            self._size_bytes = 0
            self.overflowed = True
        self._frames.append(frame)
        if isinstance(frame, EventsFrame | Delta):
            self._size_bytes += frame.size_bytes
        self._woken.set()

    async def take(self, timeout_seconds: float) -> list[Frame]:
        """Waits for frames, at most so long, and takes all there are; the notice that ends the watching comes last."""
        if not self._frames and self._ending is None:
            self._woken.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._woken.wait()
            except TimeoutError:
                return []
        taken = list(self._frames)
        self._frames.clear()
        self._size_bytes = 0
        if self._ending is not None:
            taken.append(self._ending)
        return taken
