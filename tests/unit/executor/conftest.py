"""An executor's turns, for each test its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .turns_bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.watch.cancel()
    await made.turns.stop()
