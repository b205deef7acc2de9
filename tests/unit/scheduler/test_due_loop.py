"""What a replica does between two looks at what is due."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.kernel.testing import FakeClock
from services.scheduler.usecases.firing.due_loop import ASIDE_SECONDS, Aside, DueLoop

pytestmark = pytest.mark.unit


async def test_what_is_set_aside_is_not_looked_for_all_the_time() -> None:
    clock, asked = FakeClock(), 0
    aside = Aside(clock)
    aside.put(UUID(int=1))

    async def next_due(left_out: list[UUID]) -> float | None:
        nonlocal asked
        asked += 1
        return None if left_out else 0.0

    async def nothing() -> bool:
        return False

    loop = DueLoop("test", nothing, next_due, aside, clock, look_seconds=30)
    assert loop._sleep_for(await next_due(aside.ids())) == pytest.approx(ASIDE_SECONDS, abs=0.01)
    await clock.advance(ASIDE_SECONDS)
    assert aside.ids() == []
    assert loop._sleep_for(await next_due(aside.ids())) < 0.1
