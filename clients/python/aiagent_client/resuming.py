"""A server stream that survives its connections: it is opened anew where it stood."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, Self

import grpc

from aiagent_client.connection import Connection, Metadata, backoff, is_transport_failure
from aiagent_client.errors import ApiError, StreamError, UnauthenticatedError, UnavailableError

# The server sends at least a checkpoint every 15 s: three of them missing is a dead connection.
SILENCE_SECONDS: Final = 45.0
_FIRST_CONNECTION_ATTEMPTS: Final = 5
_GAPS: Final = 3
_RENEWALS: Final = 3
_RESUMABLE: Final = {"WATCHER_TOO_SLOW", "DRAINING"}


class GapError(Exception):
    """The stream left something out."""


class ResumingStream[ItemT](ABC):
    """What comes of a stream, as an async iterator.

    Lost connections, expired tokens and servers that shut down are bridged: the iterator goes on where it stood. It
    raises ApiError for what resuming cannot mend, as when the login has ended, or the server stayed away for
    `give_up_after` seconds. `on_reconnect` hears why, each time.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        give_up_after: float,
        silence: float,
        on_reconnect: Callable[[ApiError | None], None] | None,
    ) -> None:
        self._connection = connection
        self._give_up_after = give_up_after
        self._silence = silence
        self._on_reconnect = on_reconnect
        # Set after a gap, until a response was taken without another.
        self._after_gap = False
        self._items = self._follow()

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream. What it showed goes on."""
        await self._items.aclose()

    @property
    @abstractmethod
    def _what(self) -> str:
        """What is watched, for errors."""

    @abstractmethod
    def _open(self, metadata: Metadata) -> object:
        """Opens the stream where the iterator stands."""

    @abstractmethod
    def _take(self, response: Any) -> Iterator[ItemT]:
        """Yields the new items of a response, and moves on with each. Raises GapError."""

    @abstractmethod
    def _finished(self) -> bool:
        """Whether a stream that the server ended is at its end."""

    async def _follow(self) -> AsyncGenerator[ItemT]:
        loop = asyncio.get_running_loop()
        connected = False
        failures = gaps = 0
        last_response = loop.time()
        while True:
            failure: ApiError | None = None
            try:
                async with aclosing(self._connection.stream(self._open, silence=self._silence)) as responses:
                    async for response in responses:
                        connected = True
                        failures = 0
                        last_response = loop.time()
                        for item in self._take(response):
                            yield item
                        gaps = 0
                        self._after_gap = False
                if self._finished():
                    return
                failure = UnavailableError("the server ended the stream", code=grpc.StatusCode.UNAVAILABLE)
            except GapError as error:
                gaps += 1
                if gaps > _GAPS:
                    raise StreamError(f"the stream of {self._what} is broken: {error}") from error
                self._after_gap = True
            except ApiError as error:
                if not _resumable(error, renewable=connected and failures < _RENEWALS):
                    raise
                failure = error
            failures += 1
            if failure is not None:
                self._check_patience(failure, connected, failures, loop.time() - last_response)
            if self._on_reconnect is not None:
                self._on_reconnect(failure)
            # The first resumption comes at once: most often the server only asked for it.
            if failures > 1 or not connected:
                await asyncio.sleep(backoff(failures, failure.retry_after if failure else None))

    def _check_patience(self, failure: ApiError, connected: bool, failures: int, away: float) -> None:
        if not connected and failures >= _FIRST_CONNECTION_ATTEMPTS:
            raise failure
        if away > self._give_up_after:
            raise failure


def _resumable(error: ApiError, *, renewable: bool) -> bool:
    if isinstance(error, UnauthenticatedError):
        # A proxy ends a stream whose token it no longer takes without giving a reason. Where new tokens are refused
        # again and again, yet another one will not help.
        return renewable and error.reason in ("", "TOKEN_EXPIRED", "TOKEN_INVALID")
    return error.reason in _RESUMABLE or isinstance(error, UnavailableError) or is_transport_failure(error)
