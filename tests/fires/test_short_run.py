"""A short run of the harness with a fixed seed: what continuous integration can afford of `make fires`."""

from __future__ import annotations

import pytest

from .floor import Crew
from .running import Plan, run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_each_fire_makes_one_run_whoever_is_killed() -> None:
    crew = Crew(schedulers=2, workers=2)
    outcome = await run(Plan(7, schedules=60, seconds=6.0, pace=0.7, longest_turn_seconds=1.0, crew=crew))
    assert outcome.violations == []
    # Had nobody been killed there would be nothing to see.
    assert outcome.figures["kills"] >= 4
    assert outcome.figures["runs"] == 60
