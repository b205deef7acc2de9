"""A process with one service, for the test that ends it: `python -m tests.integration.kernel.one_service`.

Prints its port, then a line for each step of its end. The stream of WatchSession ends itself on drain; the unary call
ends when `release` appears on standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiagent.session.v1 import session_service_pb2 as pb
from services.kernel import lifecycle
from services.kernel.grpc import PUBLIC, build_server
from services.kernel.telemetry import configure_logging
from tests.integration.kernel.servicers import POLICIES, Sessions


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class OneService:
    name = "one"

    def __init__(self) -> None:
        sessions = Sessions()
        sessions.behave, sessions.stream = self.hold, self.watch
        self.released = asyncio.Event()
        self.server = build_server(
            listen="127.0.0.1:0",
            domain="test.aiagent",
            register=[sessions.register],
            policies=dict.fromkeys(POLICIES, PUBLIC),
        )

    async def hold(self, _request: Any, _context: Any) -> None:
        say("held")
        await self.released.wait()

    async def watch(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.WatchSessionResponse()
        await self.server.drain.wait()
        yield pb.WatchSessionResponse()

    async def start(self) -> None:
        await self.server.start()

    async def drain(self, grace_seconds: float) -> None:
        say("drain")
        say("drained" if await self.server.drain_calls(grace_seconds) else "cut")

    async def stop(self) -> None:
        await self.server.stop()
        say("stopped")


async def main() -> None:
    configure_logging("WARNING")
    service = OneService()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def listen() -> None:
        async for _ in reader:
            service.released.set()

    async def ready() -> None:
        say(str(service.server.port))

    listening = asyncio.create_task(listen())
    await lifecycle.run([service], grace_seconds=float(sys.argv[1]), ready=ready)
    listening.cancel()


if __name__ == "__main__":
    asyncio.run(main())
