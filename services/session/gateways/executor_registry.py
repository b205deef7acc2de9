"""The executors registered in Redis. A hint: nothing follows from a missing entry, and nobody waits for it long."""

from __future__ import annotations

import asyncio
import json
import time

import structlog
from redis.asyncio import Redis

from services.kernel.redis import UNAVAILABLE, executor_key, executor_names_key

_log = structlog.get_logger(__name__)
PATIENCE_SECONDS = 0.25
"""How long a turn that needs an executor waits for the look-up."""
PAUSE_SECONDS = 1.0
"""After a failure, nobody tries for so long."""


class ExecutorRegistry:
    """Reads what executors write."""

    def __init__(self, redis: Redis | None) -> None:
        """Args: redis: None to do without."""
        self._redis = redis
        self._known: list[str] = []
        self._ask_again = 0.0

    async def targets(self) -> list[str]:
        """Where the registered executors are; while Redis is away, those that were registered before."""
        if self._redis is None or time.monotonic() < self._ask_again:
            return self._known
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._known = await self._look_up(self._redis)
        except UNAVAILABLE as error:
            self._ask_again = time.monotonic() + PAUSE_SECONDS
            _log.info("executors cannot be looked up; those known before are asked", why=type(error).__name__)
        return self._known

    async def _look_up(self, redis: Redis) -> list[str]:
        names = sorted(await redis.smembers(executor_names_key()))
        entries = await redis.mget([executor_key(_text(name)) for name in names]) if names else []
        return [target for target in map(_target, entries) if target]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _target(entry: bytes | str | None) -> str:
    try:
        return str(json.loads(entry)["target"]) if entry else ""
    except (ValueError, KeyError, TypeError):
        return ""
