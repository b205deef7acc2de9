"""Writes what the runs of one process have come to: whatever has piled up, in one transaction (group commit).

A commit waits for the disk, whether it brings one run or a hundred. While one is under way the next batch gathers, so
that batches grow with the load, and a run alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import structlog

from services.kernel.context import detached
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.runs import LeaseLost
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker.ports import NOT_YET, Progress, RunQueue

_log = structlog.get_logger(__name__)

POSTED_SECONDS: Final = 0.05
"""How long a step that nobody waits for is kept back for the next one of its claim, which says it too."""
MOST_BUSY: Final = 2
"""How many steps of a batch may find the database too busy, each by itself, until it is held to be so for all."""
FIRST_PAUSE_SECONDS: Final = 0.01
"""How long a step is kept back whose run or schedule somebody else has locked, or for which the database is too busy;
twice as long each time."""
MOST_PAUSE_SECONDS: Final = 1.0
"""The longest of these pauses."""
DRAIN_SECONDS: Final = 5.0
"""How long a process that ends waits for what is being written."""
_Key = tuple[UUID, int]
_Waiter = asyncio.Future[RunState]


class _Waiting:
    """The latest of one claim, and who waits for it: it says all that the steps before it said."""

    def __init__(self, step: Progress, due: float) -> None:
        self.step = step
        self.due = due
        self.waiters: list[_Waiter] = []
        self.pause = 0.0
        """How long it is kept back, since it was not to be written before; 0 if it was not tried."""


class Recorder:
    """The one writer of a process. Whatever of a claim comes later is written later, or with it."""

    def __init__(self, queue: RunQueue) -> None:
        """Args: queue: where to write."""
        self._queue = queue
        self._waiting: dict[_Key, _Waiting] = {}
        self._writing: asyncio.Task[None] | None = None
        self._urged = asyncio.Event()
        self._draining = False

    def post(self, step: Progress) -> None:
        """Has a step written soon, without waiting for it, or with the next one of its claim where that comes sooner.

        What becomes of it the next step of the claim comes to know.
        """
        key = (step.claim.run_id, step.claim.epoch)
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = _Waiting(step, asyncio.get_running_loop().time() + POSTED_SECONDS)
        else:
            waiting.step = step
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="run-recorder", context=detached())

    async def record(self, step: Progress) -> RunState:
        """Has a step written; returns the run's state.

        Raises:
            LeaseLost: Another worker has the run, or it is gone.
            ServiceError: UNAVAILABLE: the database is away; whether it was written is not known. While it is merely
                too busy, or somebody else has the run or its schedule locked, this waits.
        """
        self.post(step)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting[step.claim.run_id, step.claim.epoch].waiters.append(waiter)
        self._urged.set()
        return await waiter

    async def drain(self) -> None:
        """Returns when all is written that was to be, or `DRAIN_SECONDS` are over; nothing may be recorded any more."""
        self._draining = True
        self._urged.set()
        if self._writing is not None:
            writing = self._writing
            await asyncio.wait((writing,), timeout=DRAIN_SECONDS)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._urge()
                # Whoever was resumed by the last batch, or by the same message, gets to say what comes of it first.
                await asyncio.sleep(0)
                if batch := self._take():
                    await self._write(batch)
        finally:
            self._writing = None

    async def _urge(self) -> None:
        """Waits until somebody waits, or the first of those that were posted or are kept back is due."""
        if not self._draining or all(waiting.pause for waiting in self._waiting.values()):
            first = min(waiting.due for waiting in self._waiting.values())
            try:
                async with asyncio.timeout_at(first):
                    await self._urged.wait()
            except TimeoutError:
                pass
            self._urged.clear()

    def _take(self) -> list[_Waiting]:
        now = asyncio.get_running_loop().time()
        due = {
            key: waiting
            for key, waiting in self._waiting.items()
            if waiting.due <= now or (not waiting.pause and (waiting.waiters or self._draining))
        }
        for key in due:
            del self._waiting[key]
        return list(due.values())

    async def _write(self, batch: list[_Waiting]) -> None:
        error = await self._try(batch)
        if error is None:
            return
        if len(batch) == 1 or _away(error):
            self._put_down(batch, error)
            return
        # It is one of them: a value that is not taken. The others do not share its lot, unless the database is too busy
        # for any.
        busy = 0
        for number, waiting in enumerate(batch):
            error = await self._try([waiting])
            if error is not None:
                self._put_down([waiting], error)
                busy += isinstance(error, ServiceError)
                if busy == MOST_BUSY or _away(error):
                    self._put_down(batch[number + 1 :], error)
                    return

    def _put_down(self, batch: list[_Waiting], error: Exception) -> None:
        """Nothing of these was written: where the database was only too busy, they are kept for later."""
        if isinstance(error, ServiceError) and not _away(error):
            self._keep(batch)
        else:
            _fail(batch, error)

    def _keep(self, batch: list[_Waiting]) -> None:
        """Keeps steps back for a while; what came later of the same claim says them too."""
        for waiting in batch:
            waiting.pause = min(MOST_PAUSE_SECONDS, 2 * waiting.pause or FIRST_PAUSE_SECONDS)
            waiting.due = asyncio.get_running_loop().time() + waiting.pause
            key = (waiting.step.claim.run_id, waiting.step.claim.epoch)
            later = self._waiting.get(key)
            if later is not None:
                waiting.step = later.step
                waiting.waiters += later.waiters
            self._waiting[key] = waiting

    async def _try(self, batch: list[_Waiting]) -> Exception | None:
        """Writes steps, and tells who waits; nobody is told anything where it fails."""
        try:
            states = await self._queue.record([waiting.step for waiting in batch])
        except ServiceError as error:
            return error
        except Exception as error:
            BACKGROUND_FAILURES.labels("run-recorder").inc()
            _log.exception("steps of runs not recorded", runs=[str(one.step.claim.run_id) for one in batch])
            return error
        for waiting, state in zip(batch, states, strict=True):
            if state is None:
                _fail([waiting], LeaseLost(f"epoch {waiting.step.claim.epoch}"))
                continue
            if state is NOT_YET:
                self._keep([waiting])
                continue
            for waiter in waiting.waiters:
                if not waiter.done():
                    waiter.set_result(state)
        return None


def _away(error: Exception) -> bool:
    return isinstance(error, ServiceError) and error.reason == "DATABASE_UNAVAILABLE"


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        for waiter in waiting.waiters:
            if not waiter.done():
                waiter.set_exception(error)
