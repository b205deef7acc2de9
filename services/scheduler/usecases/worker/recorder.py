"""Writes what the runs of one process have come to: whatever has piled up, in one transaction (group commit).

A commit waits for the disk, whether it brings one run or a hundred. While one is under way the next batch gathers, so
that batches grow with the load, and a run alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog

from services.kernel.context import detached
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.runs import LeaseLost
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker.ports import Progress, RunQueue

_log = structlog.get_logger(__name__)

_Key = tuple[UUID, int]
_Waiter = asyncio.Future[RunState]


class _Waiting:
    """The latest of one claim, and who waits for it: it says all that the steps before it said."""

    def __init__(self, step: Progress) -> None:
        self.step = step
        self.waiters: list[_Waiter] = []


class Recorder:
    """The one writer of a process. Whatever of a claim comes later is written later, or with it."""

    def __init__(self, queue: RunQueue) -> None:
        """Args: queue: where to write."""
        self._queue = queue
        self._waiting: dict[_Key, _Waiting] = {}
        self._writing: asyncio.Task[None] | None = None

    def post(self, step: Progress) -> None:
        """Has a step written, without waiting for it; what becomes of it the next step of the claim comes to know."""
        key = (step.claim.run_id, step.claim.epoch)
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = _Waiting(step)
        else:
            waiting.step = step
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="run-recorder", context=detached())

    async def record(self, step: Progress) -> RunState:
        """Has a step written; returns the run's state.

        Raises:
            LeaseLost: Another worker has the run, or it is gone.
            ServiceError: UNAVAILABLE: the database is away; whether it was written is not known.
        """
        self.post(step)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting[step.claim.run_id, step.claim.epoch].waiters.append(waiter)
        return await waiter

    async def drain(self) -> None:
        """Returns when all is written that was to be."""
        while self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write_all(self) -> None:
        try:
            # Whoever was resumed by the last batch, or by the same message, gets to say what comes of it first.
            await asyncio.sleep(0)
            while self._waiting:
                batch, self._waiting = list(self._waiting.values()), {}
                await self._write(batch)
                await asyncio.sleep(0)
        finally:
            self._writing = None

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            states = await self._queue.record([waiting.step for waiting in batch])
        except Exception as error:
            if len(batch) > 1 and not _away(error):
                # It is one of them: a row that somebody holds for long, a value that is not taken. The others do not
                # share its lot.
                for waiting in batch:
                    await self._write([waiting])
                return
            if not isinstance(error, ServiceError):
                BACKGROUND_FAILURES.labels("run-recorder").inc()
                _log.exception("step of a run not recorded", run_id=str(batch[0].step.claim.run_id))
            for waiting in batch:
                _fail(waiting, error)
            return
        for waiting, state in zip(batch, states, strict=True):
            if state is None:
                _fail(waiting, LeaseLost(f"epoch {waiting.step.claim.epoch}"))
                continue
            for waiter in waiting.waiters:
                if not waiter.done():
                    waiter.set_result(state)


def _away(error: Exception) -> bool:
    return isinstance(error, ServiceError) and error.reason == "DATABASE_UNAVAILABLE"


def _fail(waiting: _Waiting, error: Exception) -> None:
    for waiter in waiting.waiters:
        if not waiter.done():
            waiter.set_exception(error)
