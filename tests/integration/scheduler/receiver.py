"""A receiver of webhooks on loopback, which answers as a test says, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Reply = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What is written back, or who writes it."""
TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Takes every message unless `replies`, the first one first, say otherwise."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    reply: Reply = TAKEN
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    open_now: int = 0
    most_open: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes one request."""
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            sent = {
                name: line.split(": ", 1)[1]
                for line in head[1:]
                if line
                for name in [line.lower().split(": ")[0]]
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            async with self.arrived:
                self.requests.append(Request(head[0], sent, body))
                reply = self.replies.pop(0) if self.replies else self.reply
                self.arrived.notify_all()
            if isinstance(reply, bytes):
                writer.write(reply)
            else:
                await reply(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def until(self, count: int) -> list[Request]:
        """Waits until so many requests have arrived."""
        async with asyncio.timeout(15), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests


@asynccontextmanager
async def receiving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Runs a receiver."""
    receiver = Receiver()
    tasks: set[asyncio.Task[None]] = set()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """An answer of HTTP/1.1."""
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def hang(writer: asyncio.StreamWriter) -> None:
    """Says nothing."""
    await asyncio.Event().wait()
