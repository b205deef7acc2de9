"""Watchers that check what they see, resume wherever they are cut, and know how long they have waited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc

from aiagent.session.v1 import session_service_pb2 as pb
from tests.chaos.calling import AGAIN
from tests.chaos.calling import OPTIONS as CHANNEL_OPTIONS
from tests.e2e.conftest import User
from tests.e2e.watching import Watcher

WATCHERS_PER_CONNECTION = 25
_PAUSE_SECONDS = 0.1


@dataclass
class Stream(Watcher):
    """A watcher that is told when something comes.

    `longest` is its longest wait between two responses since `reset`, in seconds of the loop.
    """

    cuts: int = 0
    last: float = 0.0
    longest: float = 0.0
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, response: pb.WatchSessionResponse) -> None:
        """Checks and keeps one response, and notes the time."""
        super().take(response)
        self.mark()
        self.ready.set()

    def mark(self) -> None:
        """Ends the wait that goes on."""
        now = asyncio.get_running_loop().time()
        self.longest, self.last = max(self.longest, now - self.last), now

    @property
    def heard(self) -> int:
        """How many characters of text it has got."""
        return sum(map(len, self.texts.values()))

    def reset(self) -> None:
        """Counts waits from now on."""
        self.last, self.longest = asyncio.get_running_loop().time(), 0.0

    async def stay(self) -> None:
        """Follows the session to its end, however often the connection is cut."""
        while True:
            try:
                if await self.follow(until_idle=True):
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise
                self.cuts += 1
            await asyncio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def streams(
    user: User, target: str, session_ids: Sequence[str], count: int
) -> AsyncIterator[list[Stream]]:
    """So many streams, spread over the sessions and over connections of their own, while the block runs."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
            for _ in range(-(-count // WATCHERS_PER_CONNECTION))
        ]
        users = [replace(user, channel=channel) for channel in channels]
        yield [
            Stream(users[number % len(users)], session_ids[number % len(session_ids)])
            for number in range(count)
        ]
