"""The session service for tests of its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.local.servers import Valkey
from tests.databases import Copy

from .serving import Serving, serving


@pytest.fixture(scope="module")
async def api(
    databases: Copy, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serving]:
    """A service for the tests of a module, which bring people of their own."""
    async with serving(databases, valkey, tmp_path_factory.mktemp("api")) as running:
        yield running
