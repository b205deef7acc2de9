"""Calls over the public port as a patient client makes them: again, with the same request id, until answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from tests.e2e.conftest import User, details

AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
    }
)
"""What a client with request ids may try again whatever became of the first try."""
_PAUSE_SECONDS = 0.25
_TRY_SECONDS = 8.0
OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A frozen or vanished far side is noticed by the connection itself.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class NotAnswered(Exception):
    """No try was answered in time."""


class Statuses:
    """Counts the statuses that calls ended with, by method: `WatchSession UNAVAILABLE DRAINING`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, method: str, error: grpc.aio.AioRpcError) -> None:
        """Counts one that is no success."""
        reason, _ = details(error)
        words = [method, error.code().name, reason or f"({(error.details() or '')[:60]})"]
        self.counts[" ".join(words)] += 1


async def patiently(
    user: User,
    statuses: Statuses,
    method: str,
    stub: Callable[..., Any],
    request: Any,
    *,
    seconds: float = 60,
) -> Any:
    """Calls until the call is answered.

    Args:
        user: Who calls.
        statuses: Counts what did not work.
        method: Its name, for the count.
        stub: The method.
        request: With a request id, if the method changes anything.
        seconds: How long to go on trying.

    Raises:
        NotAnswered: The time is up.
        grpc.aio.AioRpcError: A refusal, which another try would not change.
    """
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await stub(request, metadata=user.metadata, timeout=_TRY_SECONDS)
        except grpc.aio.AioRpcError as error:
            statuses.note(method, error)
            if error.code() not in AGAIN:
                raise
        if asyncio.get_running_loop().time() > end:
            raise NotAnswered(method)
        await asyncio.sleep(_PAUSE_SECONDS)
