"""A connection for what is on the way to a watcher: no task is woken, and nothing is built, between bytes and words.

The client's own pipelines and subscriptions cost 0.8 ms from one process to another on the machine of
`docs/decisions/0070`; this costs 0.35 ms. The client still does what is done once: address, TLS, authentication.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

ANSWER_SECONDS: Final = 1.0
"""When no answer has come for so long its connection counts as lost."""
Word = str | bytes | int
Command = tuple[Word, ...]
Received = Callable[[bytes, bytes], None]
"""Takes a channel and what was published there. It must not raise."""


def _nobody(channel: bytes, data: bytes) -> None:
    """For a connection that subscribes to nothing."""


def _not_told() -> None:
    """For a connection whose loss is noticed at the next use."""


class Wire(asyncio.Protocol):
    """One connection, either for commands or for subscriptions; see `open_wire`. When it is lost, open another."""

    def __init__(self, transport: asyncio.Transport, received: Received, on_lost: Callable[[], None]) -> None:
        """Use `open_wire`."""
        self._transport = transport
        self._received = received
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._unanswered = 0
        self._answers = 0
        self._answered = asyncio.Event()
        self._failure: Exception | None = None
        self._failed = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether nothing goes through it any more."""
        return self._failure is not None

    async def wait_lost(self, timeout_seconds: float) -> bool:
        """Waits until it is lost, at most so long; returns `lost`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._failed.wait()
        except TimeoutError:
            return False
        return True

    def subscribe(self, channels: Iterable[str]) -> None:
        """Asks for what is published on these channels from now on, give or take a moment."""
        self._write(("SUBSCRIBE", *channels))

    def unsubscribe(self, channel: str) -> None:
        """Asks for no more of it."""
        self._write(("UNSUBSCRIBE", channel))

    @property
    def unanswered(self) -> int:
        """How many commands are on the way."""
        return self._unanswered

    def send(self, command: Command) -> None:
        """Sends a command at once; `execute` waits for its answer, too."""
        self._unanswered += 1
        self._write(command)

    async def execute(self, commands: Iterable[Command] = ()) -> None:
        """Sends commands, in order, and waits until these and all before are answered.

        Raises:
            RedisError: the connection is lost, one of them was refused, or no answer came for `ANSWER_SECONDS`.
        """
        for command in commands:
            self.send(command)
        silent = 0
        while self._unanswered and self._failure is None:
            before = self._answers
            self._answered.clear()
            try:
                # In two parts: this process may have been what stood still, and the answers be there by now.
                async with asyncio.timeout(ANSWER_SECONDS / 2):
                    await self._answered.wait()
            except TimeoutError:
                silent = silent + 1 if self._answers == before else 0
                if silent == 2:
                    self._fail(RedisConnectionError("no answer"))
        if self._failure is not None:
            raise self._failure

    def _write(self, words: Command) -> None:
        if self._failure is None:
            self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # the stub knows tuples of one word

    def _fail(self, failure: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        self._transport.abort()
        self._failed.set()
        self._answered.set()
        self._on_lost()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._take(answer)
        except hiredis.ProtocolError as error:
            self._fail(RedisConnectionError(f"not the protocol: {error}"))

    def _take(self, answer: Any) -> None:
        # What is published comes as a list of three; so do the acknowledgements of subscriptions, which nobody awaits.
        if isinstance(answer, list) and len(answer) == 3:
            kind, channel, content = answer
            if kind == b"message":
                self._received(channel, content)
            return
        if isinstance(answer, hiredis.ReplyError):
            self._fail(ResponseError(str(answer)))
            return
        self._answers += 1
        self._unanswered -= 1
        if not self._unanswered:
            self._answered.set()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._fail(RedisConnectionError("the connection was lost"))


@asynccontextmanager
async def open_wire(
    redis: Redis, received: Received = _nobody, on_lost: Callable[[], None] = _not_told
) -> AsyncIterator[Wire]:
    """Opens a connection of its own for the time of the block.

    Args:
        redis: its client, with the address and whatever else there is to know.
        received: takes what is published on the channels that are subscribed to.
        on_lost: is called once when the connection is lost, or closed.

    Raises:
        RedisError, OSError, TimeoutError: see `UNAVAILABLE`.
    """
    pool: Any = redis.connection_pool
    connection = pool.make_connection()
    try:
        await connection.connect()
        # The streams of the client are passed by: what comes in is read where it arrives.
        transport = cast("asyncio.Transport", connection._writer.transport)
        wire = Wire(transport, received, on_lost)
        transport.set_protocol(wire)
        yield wire
    finally:
        await connection.disconnect(nowait=True)
