"""Redis or Valkey: a hint, never the truth. Its loss is a degraded service, never a failed one."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)
"""What a caller catches around a command: the hint is lost, the work goes on."""


class SoundConnection(Connection):
    """A connection whose loss is always a ConnectionError.

    A transport that was closed between two commands, and a reply that another task has begun to read, are a
    RuntimeError of the event loop, which the client neither tries again nor calls its own.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """See `Connection`."""
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise await self._lost(error) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """See `Connection`."""
        try:
            return await super().read_response(*args, **options)
        except RuntimeError as error:
            raise await self._lost(error) from error

    async def _lost(self, error: RuntimeError) -> RedisConnectionError:
        await self.disconnect(nowait=True)
        return RedisConnectionError(f"the connection was lost: {error}")


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
        connection_class=SoundConnection,
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
