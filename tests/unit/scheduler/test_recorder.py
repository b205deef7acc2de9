"""What a worker records goes in groups, and the fate of one is not that of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from services.kernel.errors import ErrorKind, ServiceError
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.domain.runs import CANCELLED, Claim, LeaseLost, RunContent
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker import recorder as recorders
from services.scheduler.usecases.worker.ports import NOT_YET, Claimed, Progress, Recorded, Renewal
from services.scheduler.usecases.worker.recorder import Recorder

CONTENT = RunContent("a", "b", {}, {}, {}, 0, timedelta(minutes=1), RetryPolicy(), 0.0)


def a_claim(epoch: int = 1, run_id: UUID | None = None) -> Claim:
    """A run that a worker has just taken."""
    return Claim(run_id or uuid4(), uuid4(), uuid4(), "w", epoch, 1, CONTENT, False, None, None, 0, 60, False)


class Written:
    """A queue that keeps what it is told; it writes when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Progress]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.lost: set[UUID] = set()
        self.refused: dict[UUID, Exception] = {}
        self.locked: set[UUID] = set()

    async def record(self, steps: Sequence[Progress]) -> list[Recorded]:
        """Writes."""
        self.batches.append(list(steps))
        await self.open.wait()
        for step in steps:
            if step.claim.run_id in self.refused:
                raise self.refused[step.claim.run_id]
        states: list[Recorded] = []
        for step in steps:
            run_id, state = step.claim.run_id, step.outcome.state if step.outcome else RunState.RUNNING
            states.append(NOT_YET if run_id in self.locked else None if run_id in self.lost else state)
        return states

    async def claim(self, holder: str, limit: int) -> Claimed:
        """Has nothing."""
        return Claimed([])

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Has nothing."""
        return Renewal()

    async def release(self, held: Sequence[Claim]) -> None:
        """Has nothing."""

    async def hopeless(self) -> list[UUID]:
        """Has nothing."""
        return []

    async def give_up(self, run_id: UUID, holder: str) -> Claim | None:
        """Has nothing."""
        return None

    async def promote_forgotten(self) -> int:
        """Has nothing."""
        return 0

    async def end_of_deleted_tasks(self) -> int:
        """Has nothing."""
        return 0


async def test_what_piles_up_behind_a_write_goes_together() -> None:
    queue = Written()
    queue.open.clear()
    recorder = Recorder(queue)
    steps = [Progress(a_claim(), session_id=uuid4()) for _ in range(6)]
    first = asyncio.create_task(recorder.record(steps[0]))
    while not queue.batches:
        await asyncio.sleep(0)
    others = [asyncio.create_task(recorder.record(step)) for step in steps[1:]]
    await asyncio.sleep(0)
    queue.open.set()
    assert await asyncio.gather(first, *others) == [RunState.RUNNING] * 6
    assert queue.batches == [steps[:1], steps[1:]]


async def test_a_step_that_nobody_waits_for_goes_with_the_next_of_its_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorders, "POSTED_SECONDS", 60.0)
    queue = Written()
    recorder = Recorder(queue)
    claim, turn = a_claim(), uuid4()
    recorder.post(Progress(claim, turn_id=turn))
    other = Progress(a_claim())
    await recorder.record(other)
    end = Progress(claim, turn_id=turn, outcome=CANCELLED)
    assert await recorder.record(end) is RunState.CANCELLED
    assert queue.batches == [[other], [end]]


async def test_a_step_that_nobody_waits_for_is_written_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "POSTED_SECONDS", 0.001)
    queue = Written()
    recorder = Recorder(queue)
    step = Progress(a_claim(), turn_id=uuid4())
    recorder.post(step)
    async with asyncio.timeout(10):
        while queue.batches != [[step]]:
            await asyncio.sleep(0)
    monkeypatch.setattr(recorders, "POSTED_SECONDS", 60.0)
    recorder.post(step)
    async with asyncio.timeout(10):
        await recorder.drain()
    assert queue.batches == [[step], [step]]


async def test_only_who_has_lost_its_run_is_told() -> None:
    queue = Written()
    recorder = Recorder(queue)
    run_id = uuid4()
    old, new = Progress(a_claim(1, run_id)), Progress(a_claim(2, run_id))
    other = Progress(a_claim())
    queue.lost.add(other.claim.run_id)
    found = await asyncio.gather(
        *(recorder.record(step) for step in (old, new, other)), return_exceptions=True
    )
    assert found[:2] == [RunState.RUNNING, RunState.RUNNING]
    assert isinstance(found[2], LeaseLost)
    assert queue.batches == [[old, new, other]]


BUSY = ServiceError(ErrorKind.UNAVAILABLE, reason="DATABASE_BUSY", domain="d", message="busy")


async def test_what_stops_one_stops_no_other() -> None:
    queue, error = Written(), ValueError("a value that is not taken")
    recorder = Recorder(queue)
    steps = [Progress(a_claim()) for _ in range(3)]
    queue.refused[steps[1].claim.run_id] = error
    found = await asyncio.gather(*(recorder.record(step) for step in steps), return_exceptions=True)
    assert found == [RunState.RUNNING, error, RunState.RUNNING]


async def test_without_the_database_all_are_told_at_once_and_later_ones_written() -> None:
    queue = Written()
    recorder = Recorder(queue)
    away = ServiceError(ErrorKind.UNAVAILABLE, reason="DATABASE_UNAVAILABLE", domain="d", message="away")
    steps = [Progress(a_claim()) for _ in range(3)]
    queue.refused[steps[1].claim.run_id] = away
    found = await asyncio.gather(*(recorder.record(step) for step in steps), return_exceptions=True)
    assert found == [away] * 3
    assert len(queue.batches) == 1
    assert await recorder.record(steps[0]) is RunState.RUNNING


async def test_a_database_that_is_too_busy_for_some_is_not_asked_by_all_and_nobody_is_put_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorders, "FIRST_PAUSE_SECONDS", 0.001)
    queue = Written()
    recorder = Recorder(queue)
    steps = [Progress(a_claim()) for _ in range(6)]
    queue.refused = {step.claim.run_id: BUSY for step in steps}
    recording = [asyncio.create_task(recorder.record(step)) for step in steps]
    async with asyncio.timeout(10):
        while len(queue.batches) < 4:
            await asyncio.sleep(0)
    assert [len(batch) for batch in queue.batches[:3]] == [6, 1, 1]
    queue.refused.clear()
    assert await asyncio.gather(*recording) == [RunState.RUNNING] * 6


async def test_what_is_locked_is_written_later_and_others_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(recorders, "MOST_PAUSE_SECONDS", 0.002)
    queue = Written()
    recorder = Recorder(queue)
    claim, other = a_claim(), a_claim()
    queue.locked.add(claim.run_id)
    note = asyncio.create_task(recorder.record(Progress(claim, session_id=uuid4())))
    assert await recorder.record(Progress(other)) is RunState.RUNNING
    async with asyncio.timeout(10):
        while len(queue.batches) < 4:
            await asyncio.sleep(0)
    # What comes later of the same claim is what is tried then.
    end = Progress(claim, outcome=CANCELLED)
    ending = asyncio.create_task(recorder.record(end))
    async with asyncio.timeout(10):
        while queue.batches[-2:] != [[end], [end]]:
            await asyncio.sleep(0)
    assert not note.done()
    queue.locked.clear()
    assert await asyncio.gather(note, ending) == [RunState.CANCELLED] * 2


async def test_a_process_that_ends_tries_what_is_locked_without_haste(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorders, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(recorders, "FIRST_PAUSE_SECONDS", 0.02)
    queue = Written()
    recorder = Recorder(queue)
    step = Progress(a_claim())
    queue.locked.add(step.claim.run_id)
    recorder.post(step)
    async with asyncio.timeout(10):
        await recorder.drain()
    assert 1 < len(queue.batches) < 5


async def test_a_process_that_ends_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "DRAIN_SECONDS", 0.01)
    queue = Written()
    queue.open.clear()
    recorder = Recorder(queue)
    recorder.post(Progress(a_claim()))
    async with asyncio.timeout(10):
        await recorder.drain()
    assert len(queue.batches) == 1
