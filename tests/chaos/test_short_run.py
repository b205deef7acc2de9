"""A short run of the harness with a fixed seed: what continuous integration can afford of `make chaos`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from . import plan, report
from .running import Run, forget

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]

SEED = 5033
SECONDS = 30.0
"""With the start, the rest after the last fault and the end: at most 90 s."""


async def test_whatever_dies_nothing_is_lost_repeated_or_left_over(capsys: pytest.CaptureFixture[str]):
    made = plan.make(SEED, SECONDS, users=4, pace=2.2)
    folder = Path(tempfile.mkdtemp(prefix="aiagent-chaos-"))
    outcome = await Run(made, folder, executors=2).run()
    with capsys.disabled():
        print(f"\n{report.table(outcome)}")
    assert not outcome.violations, report.complaint(outcome)
    # Had nothing been struck, or nothing been done, there would be nothing to see.
    assert outcome.figures["faults"] >= len(made.faults) // 2
    assert outcome.figures["turns SUCCEEDED"] >= 5
    forget(outcome)
