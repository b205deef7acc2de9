"""Says in Redis where this executor is, so that it is found without being configured. A hint: who misses it asks the
configured addresses, and whoever holds an attempt here has its address stored with the turn."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import structlog
from redis.asyncio import Redis

from services.kernel.clock import Clock
from services.kernel.redis import UNAVAILABLE, executor_key, executor_names_key

_log = structlog.get_logger(__name__)
EXPIRE_SECONDS = 5
REFRESH_SECONDS = 1.0


class Registration:
    """This executor's entry."""

    def __init__(self, redis: Redis, executor_id: str, target: str, incarnation: UUID, clock: Clock) -> None:
        """Args: redis: where; executor_id, target, incarnation: what; clock: for waiting."""
        self._redis = redis
        self._id = executor_id
        self._entry = json.dumps({"target": target, "incarnation": str(incarnation)})
        self._clock = clock
        self._away = False

    async def keep(self) -> None:
        """Writes the entry each second; runs until it is cancelled."""
        while True:
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    pipeline.set(executor_key(self._id), self._entry, ex=EXPIRE_SECONDS)
                    pipeline.sadd(executor_names_key(), self._id)
                    await pipeline.execute()
                self._away = False
            except UNAVAILABLE as error:
                if not self._away:
                    self._away = True
                    _log.warning(
                        "redis cannot be reached; only those who know me find me", why=type(error).__name__
                    )
            await self._clock.sleep(REFRESH_SECONDS)

    async def withdraw(self) -> None:
        """Takes the entry away, and closes the connection."""
        try:
            async with asyncio.timeout(1.0):
                await self._redis.delete(executor_key(self._id))
                await self._redis.srem(executor_names_key(), self._id)
        except UNAVAILABLE:
            _log.info("the entry of this executor will expire")
        await self._redis.aclose()
