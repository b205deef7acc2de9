"""A TCP proxy between users and the public port, which cuts connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Proxy:
    """Forwards bytes both ways until told to cut."""

    def __init__(self, port: int) -> None:
        """Args: port: where connections are handed on to, on this machine."""
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self.accepted = 0

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def target(self) -> str:
        """Where users connect."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def cut(self, pick: float) -> int:
        """Cuts some of the connections in mid-byte, at least one; returns how many.

        Args:
            pick: in [0, 1): from how many, and which.
        """
        if not self._open:
            return 0
        count = max(1, round(pick * len(self._open)))
        first = int(pick * 7919) % len(self._open)
        chosen = [self._open[(first + index) % len(self._open)] for index in range(count)]
        for pair in chosen:
            for writer in pair:
                writer.transport.abort()
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._open.append(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        finally:
            self._open.remove(pair)
            for end in pair:
                end.transport.abort()

    async def stop(self) -> None:
        """Cuts what is left and closes the port."""
        if self._server is None:
            return
        self._server.close()
        async with asyncio.timeout(5):
            while self._open:
                self.cut(1.0)
                await asyncio.sleep(0.01)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    # One direction's end is the connection's: neither gRPC nor HTTP goes on with half of one.
    writer.transport.abort()
