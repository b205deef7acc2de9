"""All the runs that one process carries: claims as places are free, renews leases together, hands over at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.kernel.clock import Clock
from services.kernel.context import about, detached
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES, repeat
from services.kernel.telemetry import registry
from services.scheduler.domain.runs import Claim, LeaseLost
from services.scheduler.usecases.worker.drive import RunDrive, stop_turn
from services.scheduler.usecases.worker.ports import RunQueue, Sessions
from services.scheduler.usecases.worker.recorder import Recorder

_log = structlog.get_logger(__name__)

RENEW_SECONDS: Final = 1.0
"""Between two renewals: a fifth of a lease's life, and how soon a wish to cancel is heard."""
LOOK_SECONDS: Final = 5.0
"""Between two looks for runs where nothing wakes the worker: those whose worker died, those that others made, those
that are held back behind nothing. The end of a pause is waited for."""
REST_SECONDS: Final = 0.005
"""After a claim that brought nothing no other begins for so long: whoever reaches the broker may wake workers as often
as they like, and each claim keeps the others out while it is made."""
_ATTEMPTS = Counter(
    "aiagent_task_run_attempts_total",
    "Attempts at runs that workers of this process have recorded as over, by their last state.",
    ("state",),
    registry=registry,
)
_START_DELAY = Histogram(
    "aiagent_task_run_start_delay_seconds",
    "From the time at which a run was due until a worker took it for its first attempt.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600),
    registry=registry,
)
_UNDER_WAY = Gauge("aiagent_task_runs_under_way", "Runs that this process carries.", registry=registry)


class RunWorker:
    """The runs of one process. `start` it once the database is there, `drain` it before the process ends."""

    def __init__(
        self,
        queue: RunQueue,
        sessions: Sessions,
        *,
        holder: str,
        clock: Clock,
        places: int,
        look_seconds: float = LOOK_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Composes the worker.

        Args:
            queue: The runs.
            sessions: Where they are carried out.
            holder: This process's name in leases, new at each start.
            clock: For waiting.
            places: How many runs at once; 0 for none.
            look_seconds: See `LOOK_SECONDS`.
            renew_seconds: See `RENEW_SECONDS`.
            draw: A source of chance, 0 to 1 without 1.
        """
        self._queue = queue
        self._sessions = sessions
        self._holder = holder
        self._clock = clock
        self._places = places
        self._look_seconds = look_seconds
        self._renew_seconds = renew_seconds
        self._draw = draw
        self._drives: dict[UUID, RunDrive] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._recorder = Recorder(queue)
        self._next_look_seconds = look_seconds
        self._rests_until = clock.monotonic()
        self._looked = clock.monotonic() - look_seconds

    async def start(self) -> None:
        """Starts claiming and renewing."""
        if self._places == 0:
            return
        self._woken.set()
        for name, step, period in (
            ("run-claims", self._claim_when_woken, 0.0),
            ("run-renewal", partial(_unless_away, self._renew), self._renew_seconds),
        ):
            work = repeat(name, step, self._clock, period)
            self._loops.append(asyncio.create_task(work, name=name, context=detached()))

    async def drain(self) -> None:
        """Stops claiming, and gives every run back as it stands: the next worker goes on with the same turn."""
        held = [drive.claim for drive in self._drives.values()]
        tasks = [*self._loops, *self._tasks.values(), *self._stopping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What had come to an end has; nobody has to find that out again.
        await self._recorder.drain()
        # What a claim brought while it was being cancelled is not among them; its lease runs out.
        try:
            if held:
                await self._queue.release(held)
        except ServiceError as error:
            _log.warning("leases not given back; they will run out", reason=error.reason)

    def wake(self) -> None:
        """Tells the worker that there may be something to claim."""
        self._woken.set()

    @property
    def under_way(self) -> int:
        """How many runs this process carries."""
        return len(self._drives)

    @property
    def _free(self) -> int:
        """A run whose attempt is over needs no place while that is recorded: the next one is claimed meanwhile."""
        return self._places - sum(not drive.over for drive in self._drives.values())

    async def _claim_when_woken(self) -> None:
        try:
            async with asyncio.timeout(self._next_look_seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        # What ends together frees its places together. Whoever has rested by now waits for nothing else.
        await asyncio.sleep(max(0.0, self._rests_until - self._clock.monotonic()))
        self._woken.clear()
        self._next_look_seconds = self._look_seconds
        await _unless_away(self._claim)

    async def _claim(self) -> None:
        """Claims until no place is free or nothing is left to claim."""
        if self._clock.monotonic() - self._looked >= self._look_seconds:
            self._looked = self._clock.monotonic()
            await self._queue.promote_forgotten()
            if await self._queue.end_of_deleted_tasks():
                # There may be more; others get to work in between.
                self._looked -= self._look_seconds
                self._next_look_seconds = REST_SECONDS
            for run_id in await self._queue.hopeless():
                await self._give_up(run_id)
        while (free := self._free) > 0:
            found = await self._queue.claim(self._holder, free)
            for claim in found.runs:
                self._take(claim)
            if not found.runs:
                self._rests_until = self._clock.monotonic() + REST_SECONDS
                if found.next_seconds is not None:
                    self._next_look_seconds = min(self._next_look_seconds, found.next_seconds)
                return

    async def _give_up(self, run_id: UUID) -> None:
        """Ends a run that was taken over as often as may be; its turn is stopped if it is known, and told soon."""
        try:
            claim = await self._queue.give_up(run_id, self._holder)
        except ServiceError as error:
            _log.warning("run not given up; the next look does it", run_id=str(run_id), reason=error.reason)
            return
        except Exception:
            # The others are not kept from their end.
            BACKGROUND_FAILURES.labels("run").inc()
            _log.exception("run not given up", run_id=str(run_id))
            return
        if claim is None:
            return
        _log.error("run given up: it was taken over too often", run_id=str(run_id))
        if claim.turn_id is not None:
            stop = asyncio.create_task(
                stop_turn(self._sessions, claim), name=f"stop-{run_id}", context=detached()
            )
            self._stopping.add(stop)
            stop.add_done_callback(self._stopping.discard)

    def _take(self, claim: Claim) -> None:
        run_id = claim.run_id
        before = self._tasks.pop(run_id, None)
        if before is not None:
            # It was taken from this very worker: its lease had run out.
            before.cancel()
        if claim.start_delay_seconds is not None:
            _START_DELAY.observe(claim.start_delay_seconds)
        drive = RunDrive(claim, self._recorder, self._sessions, self._clock, self._draw, self.wake)
        self._drives[run_id] = drive
        _UNDER_WAY.set(len(self._drives))
        self._tasks[run_id] = asyncio.create_task(
            self._carry(drive), name=f"run-{run_id}", context=about(request=str(run_id), run_id=str(run_id))
        )

    async def _carry(self, drive: RunDrive) -> None:
        run_id = drive.claim.run_id
        try:
            outcome = await drive.drive()
            _ATTEMPTS.labels(outcome.state.value).inc()
        except LeaseLost as lost:
            _log.info("run lost to another worker", why=str(lost))
        except ServiceError as error:
            # The database is away: the lease runs out, and a worker takes the run over.
            _log.warning("run put down", reason=error.reason, why=str(error))
        except Exception:
            BACKGROUND_FAILURES.labels("run").inc()
            _log.exception("run failed unexpectedly; it will be taken over")
        finally:
            if self._drives.get(run_id) is drive:
                del self._drives[run_id]
                self._tasks.pop(run_id, None)
                _UNDER_WAY.set(len(self._drives))
                # A place is free, or what ended has let others wait for a worker.
                self.wake()

    async def _renew(self) -> None:
        held = {run_id: drive.claim for run_id, drive in self._drives.items()}
        if not held:
            return
        renewal = await self._queue.renew(list(held.values()))
        for run_id, claim in held.items():
            drive, task = self._drives.get(run_id), self._tasks.get(run_id)
            if drive is None or task is None or drive.claim is not claim:
                continue
            if run_id in renewal.lost:
                _log.info("lease lost", run_id=str(run_id))
                task.cancel()
            elif run_id in renewal.cancelled:
                drive.cancel()


async def _unless_away(step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    except ServiceError as error:
        _log.warning("database not reached", reason=error.reason)
