"""Short forms of the soaks: what continuous integration can afford of `make soak`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import astuple
from pathlib import Path

import pytest
import pytest_asyncio

from tests.running_suite import RunningSuite

from . import loss, starts, turns
from .__main__ import IN_PROCESSES
from .holdings import Holding, Look, judge, slope
from .outcome import Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module")
async def own_suite() -> AsyncIterator[RunningSuite]:
    """A suite in processes, to be looked into and to be killed."""
    folder = Path(tempfile.mkdtemp(prefix="aiagent-soak-"))
    suite = RunningSuite(folder / "state", arguments=IN_PROCESSES)
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _kept(outcome: Outcome, suite: RunningSuite, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{outcome.table()}")
    assert not outcome.broken, f"{outcome.broken}\n{suite.logs()}"


async def test_no_stream_stands_still_while_agents_start(
    suite: RunningSuite, capsys: pytest.CaptureFixture[str]
):
    _kept(await starts.run(suite, starts=8, watchers=60, voices=2), suite, capsys)


@pytest.mark.soak
async def test_turns_leave_nothing_behind(own_suite: RunningSuite, capsys: pytest.CaptureFixture[str]):
    # Too few to judge memory by.
    outcome = await turns.run(own_suite, turns=12, sessions=3, warm_up=6, looks=4, memory=False)
    _kept(outcome, own_suite, capsys)


@pytest.mark.soak
async def test_all_streams_go_on_at_the_other_replica(
    own_suite: RunningSuite, capsys: pytest.CaptureFixture[str]
):
    _kept(await loss.run(own_suite, watchers=100, voices=2, kills=1, words=150), own_suite, capsys)


def test_a_slope_is_found_through_noise():
    assert slope([(0, 5), (10, 5), (20, 5)]) == 0
    assert slope([(0, 0), (10, 21), (20, 39), (30, 60)]) == pytest.approx(1.98)


@pytest.mark.parametrize(
    ("grows", "told"),
    [
        (Holding(0, 0, 0, 0, 0), []),
        (Holding(9000, 0, 0, 0, 0), []),
        (Holding(0, 900, 0, 0, 0), ["-: session-1 keeps 9.0 KiB of each turn"]),
        (Holding(0, 0, 20, 0, 0), ["-: session-1 has 70 descriptors after 30"]),
        (Holding(0, 0, 0, 7, 0), ["-: session-1 has 44 threads after 30"]),
        (Holding(0, 0, 0, 0, 7), ["-: session-1 has 44 tasks after 30"]),
    ],
)
def test_what_grows_is_told(grows: Holding, told: list[str]):
    seen = [
        Look(100 * number, {"session-1": Holding(*(30 + number * part for part in astuple(grows)))})
        for number in range(5)
    ]
    outcome = Outcome("-")
    judge(outcome, "-", seen, memory=True)
    assert outcome.broken == told
