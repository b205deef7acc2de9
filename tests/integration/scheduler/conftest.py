"""The scheduler service for tests of its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.databases import Copy

from .run_moves import watch_moves
from .serving import Serving, serving


@pytest.fixture(scope="module")
async def api(databases: Copy) -> AsyncIterator[Serving]:
    """A service for the tests of a module, which bring people of their own."""
    async with serving(databases) as running:
        yield running


@pytest.fixture(scope="module")
async def run_moves(databases: Copy) -> None:
    """Runs of the module's database may move as `domain.states` says, and not otherwise."""
    await watch_moves(databases)
