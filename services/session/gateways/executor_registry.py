"""The executors that have registered in Redis. A hint: nothing follows from a missing entry."""

from __future__ import annotations

import json

import structlog
from redis.asyncio import Redis

from services.kernel.redis import UNAVAILABLE, executor_key, executor_names_key

_log = structlog.get_logger(__name__)


class ExecutorRegistry:
    """Reads what executors write."""

    def __init__(self, redis: Redis | None) -> None:
        """Args: redis: None to do without."""
        self._redis = redis

    async def targets(self) -> list[str]:
        """Where the registered executors are; none when Redis is away."""
        if self._redis is None:
            return []
        try:
            names = sorted(await self._redis.smembers(executor_names_key()))
            entries = await self._redis.mget([executor_key(_text(name)) for name in names]) if names else []
        except UNAVAILABLE as error:
            _log.info(
                "executors cannot be looked up; the configured ones are asked", why=type(error).__name__
            )
            return []
        return [target for target in map(_target, entries) if target]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _target(entry: bytes | str | None) -> str:
    try:
        return str(json.loads(entry)["target"]) if entry else ""
    except (ValueError, KeyError, TypeError):
        return ""
