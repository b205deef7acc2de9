"""Shares of the application role's connections: no organization has them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from services.kernel.db.failures import busy


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = 0


class Shares:
    """Who may have how many connections at once. One event loop's; what a process that dies had is free by itself."""

    def __init__(self, connections: int, wait_seconds: float) -> None:
        """Gives each organization three quarters of the connections, and at least one.

        Args:
            connections: how many there are.
            wait_seconds: how long to wait for a place in the organization's share.
        """
        self._each = max(1, connections - max(1, connections // 4))
        self._wait_seconds = wait_seconds
        self._shares: dict[UUID, _Share] = {}

    @asynccontextmanager
    async def one(self, organization_id: UUID) -> AsyncIterator[None]:
        """Has a place in an organization's share for as long as the block runs.

        Raises:
            ServiceError: UNAVAILABLE with DATABASE_BUSY: its own calls have them all.
        """
        share = self._shares.setdefault(organization_id, _Share(asyncio.Semaphore(self._each)))
        share.users += 1
        try:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await share.free.acquire()
            except TimeoutError:
                raise busy() from None
            try:
                yield
            finally:
                share.free.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[organization_id]
