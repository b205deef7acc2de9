"""What a soak came to: figures, and the promises that were not kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from tests.chaos.calling import OPTIONS
from tests.e2e.conftest import User
from tests.running_suite import RunningSuite


@dataclass
class Outcome:
    """What one soak came to."""

    title: str
    figures: dict[str, int | float | str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def must(self, kept: bool, otherwise: str) -> None:
        """Notes a promise that was not kept."""
        if not kept:
            self.broken.append(otherwise)

    def table(self) -> str:
        """The figures as text."""
        lines = [self.title, *(f"  {name:<64} {value:>12}" for name, value in self.figures.items())]
        return "\n".join([*lines, *(f"  BROKEN: {promise}" for promise in self.broken)])


@asynccontextmanager
async def somebody(suite: RunningSuite) -> AsyncIterator[User]:
    """A user of a suite, with a connection of their own."""
    async with grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS) as channel:
        user = User(suite.base_url, channel)
        await user.sign_up()
        yield user
