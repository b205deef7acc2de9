"""Redis or Valkey: a hint, never the truth. Its loss is a degraded service, never a failed one."""

from __future__ import annotations

from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)
"""What a caller catches around a command: the hint is lost, the work goes on."""


def open_redis(
    url: str, *, max_connections: int = 32, timeout_seconds: float = 1.0, connect_timeout_seconds: float = 1.0
) -> Redis:
    """Returns a client; it connects at its first command, and again after a loss.

    A command on a connection that was closed meanwhile is tried once more; so that a caller is never held for long, a
    command fails after about `timeout_seconds`. Close it with `await client.aclose()`.

    Args:
        url: `redis://:password@host:port/0`.
        max_connections: further commands wait for a free one.
        timeout_seconds: for an answer.
        connect_timeout_seconds: for a new connection.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=connect_timeout_seconds,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), retries=1),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    return Redis.from_pool(pool)


def executor_key(executor_id: str) -> str:
    """Where an executor says where it is."""
    return f"aiagent:executor:{executor_id}"


def executor_names_key() -> str:
    """The set of all executors that ever said so: what is looked up instead of searching all keys."""
    return "aiagent:executors"
