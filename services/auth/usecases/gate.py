"""Bounds how many logins are under way, and how many wait for that."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from services.auth.domain.errors import overloaded

_RETRY_SECONDS: Final = 5.0


class Gate:
    """Lets a few in at a time.

    A login under way has taken a try from its buckets and gives it back when it succeeds. As fewer are let in than the
    smallest bucket holds, somebody who logs in many times at once with the right password is slow, never throttled.
    """

    def __init__(self, capacity: int, waiting: int) -> None:
        """Args: capacity: how many are let in; waiting: how many may wait, beyond that they are refused."""
        self._free = asyncio.Semaphore(capacity)
        self._places = capacity + waiting
        self._present = 0

    async def __aenter__(self) -> None:
        """Waits for a place.

        Raises:
            ServiceError: UNAVAILABLE, OVERLOADED.
        """
        if self._present >= self._places:
            raise overloaded(_RETRY_SECONDS)
        self._present += 1
        try:
            await self._free.acquire()
        except BaseException:
            self._present -= 1
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Makes room."""
        self._present -= 1
        self._free.release()
