"""The scheduler service for tests of its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kernel.db import Database
from tests.databases import Copy

from .receiver import receiving
from .run_moves import watch_moves
from .sending import Hall
from .serving import Serving, serving
from .working import floor


@pytest.fixture(scope="module")
async def api(databases: Copy) -> AsyncIterator[Serving]:
    """A service for the tests of a module, which bring people of their own."""
    async with serving(databases) as running:
        yield running


@pytest.fixture
async def hall(scheduler_database: Database) -> AsyncIterator[Hall]:
    """Senders of webhooks and a receiver."""
    async with floor(scheduler_database) as made, receiving() as receiver:
        it = Hall(made, receiver)
        yield it
        for sender in it.senders:
            await sender.drain()


@pytest.fixture(scope="module")
async def run_moves(databases: Copy) -> None:
    """Runs of the module's database may move as `domain.states` says, and not otherwise."""
    await watch_moves(databases)
