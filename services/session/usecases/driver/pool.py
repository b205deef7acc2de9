"""All the drivers of one replica: takes leases, renews them together, sweeps for what nobody drives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.context import about, detached, name_work
from services.kernel.errors import ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES, repeat
from services.session.domain.errors import LeaseLost
from services.session.usecases.driver.attempt import Attempt
from services.session.usecases.driver.driver import SessionDriver
from services.session.usecases.driver.placement import Room
from services.session.usecases.driver.runner import DriverPorts
from services.session.usecases.ports import BlobStorePort, WorkspaceStorePort

_log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
"""Between two renewals, and between two sweeps."""
LATE_SECONDS = 0.5
"""A heartbeat is not sent any more when this much has passed since its time began to be stored; see HEARTBEAT_GRACE."""
SWEEP_LIMIT = 50
"""Sessions taken up by one sweep."""


class DriverPool:
    """The drivers of one replica. `start` it before the server takes calls, `drain` it after."""

    def __init__(
        self,
        ports: DriverPorts,
        *,
        holder: str,
        clock: Clock,
        workspaces: WorkspaceStorePort,
        blobs: BlobStorePort,
        hold_seconds: float = 600.0,
    ) -> None:
        """Composes the pool.

        Args:
            ports: What drivers work with.
            holder: This process's name in leases, new at each start.
            clock: For waiting.
            workspaces: The sessions' directories.
            blobs: The sessions' large texts.
            hold_seconds: How long a process is held while a person is asked.
        """
        self._ports = ports
        self._holder = holder
        self._clock = clock
        self._workspaces = workspaces
        self._blobs = blobs
        self._hold_seconds = hold_seconds
        self._room = Room()
        self._drivers: dict[UUID, SessionDriver] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Starts renewing and sweeping."""
        self._loops = [
            asyncio.create_task(
                repeat(name, partial(_unless_away, name, step), self._clock, TICK_SECONDS),
                name=name,
                context=detached(),
            )
            for name, step in (("lease-renewal", self._renew), ("lease-sweep", self._sweep))
        ]

    async def drain(self) -> None:
        """Stops driving and hands every lease over: another replica, or the next start, goes on at once."""
        self._closing = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        leases = [driver.lease for driver in self._drivers.values()]
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lease in leases:
            try:
                await self._ports.store.release(lease)
            except ServiceError as error:
                _log.warning("lease not handed over; it will run out", reason=error.reason)

    def wake(self, session_id: UUID) -> None:
        """Tells the session's driver to look for commands; takes the session up if nobody drives it here."""
        driver = self._drivers.get(session_id)
        if driver is not None:
            driver.wake()
        elif not self._closing and session_id not in self._tasks:
            # Not in the context of the call that woke it: its deadline and its caller are not the driver's.
            self._tasks[session_id] = asyncio.create_task(
                self._drive(session_id),
                name=f"driver-{session_id}",
                context=about(session_id=str(session_id)),
            )

    @property
    def driven(self) -> int:
        """How many sessions this replica drives."""
        return len(self._drivers)

    async def _drive(self, session_id: UUID) -> None:
        try:
            lease = await self._ports.store.acquire(session_id, self._holder)
            if lease is None:
                return
            driver = self._drivers[session_id] = SessionDriver(
                self._ports,
                lease,
                clock=self._clock,
                workspaces=self._workspaces,
                blobs=self._blobs,
                hold_seconds=self._hold_seconds,
                room=self._room,
            )
            await driver.drive()
        except LeaseLost as lost:
            _log.info("lease lost", why=str(lost))
        except ServiceError as error:
            # The database or another service is away: the lease runs out, a sweep takes the session up again.
            _log.warning("driver stopped", reason=error.reason, why=str(error))
        except Exception:
            # Its session is taken up again by a sweep.
            BACKGROUND_FAILURES.labels("driver").inc()
            _log.exception("driver failed")
        finally:
            driver_now = self._drivers.pop(session_id, None)
            self._tasks.pop(session_id, None)
            if driver_now is not None and driver_now.woken and not self._closing:
                # It was woken after it had found nothing more to do.
                self.wake(session_id)

    def _attempts(self) -> list[Attempt]:
        return [
            driver.attempt
            for driver in self._drivers.values()
            if driver.attempt is not None and driver.attempt.connected
        ]

    async def _renew(self) -> None:
        """Renews all leases with one statement, stops the drivers whose lease is another's, and only then tells the
        executors that the others live: the time of a heartbeat is in the database before it is sent."""
        held = {driver.lease.session_id: driver.lease for driver in self._drivers.values()}
        if not held:
            return
        attempts = self._attempts()
        begun = self._clock.monotonic()
        lost, stored = await self._ports.store.renew(
            list(held.values()), [attempt.turn.id for attempt in attempts]
        )
        for session_id in lost:
            driver, task = self._drivers.get(session_id), self._tasks.get(session_id)
            if driver is not None and task is not None and driver.lease == held[session_id]:
                _log.info("lease lost", session_id=str(session_id))
                task.cancel()
        if self._clock.monotonic() - begun > LATE_SECONDS:
            # Frozen, or the database was slow: by the time that is stored the executor may have been given up.
            attempts = []
        # Side by side: an executor that does not answer holds up nobody's interrupt.
        await asyncio.gather(
            self._look_for_commands(list(held)),
            *(
                self._heartbeat(attempt)
                for attempt in attempts
                if attempt.session.id not in lost and attempt.turn.id in stored
            ),
        )

    async def _look_for_commands(self, session_ids: list[UUID]) -> None:
        for session_id in await self._ports.store.with_commands(session_ids):
            self.wake(session_id)

    async def _heartbeat(self, attempt: Attempt) -> None:
        # A task of its own.
        turn = attempt.turn
        name_work(request=turn.correlation, session_id=str(attempt.session.id), turn_id=str(turn.id))
        try:
            await self._ports.executors.heartbeat(attempt.key, attempt.lease.epoch)
        except ServiceError as error:
            # The item stream tells what is the matter; an executor that hears nothing ends the attempt itself.
            _log.info("heartbeat failed", reason=error.reason)

    async def _sweep(self) -> None:
        """Takes up sessions that have work and no live lease."""
        for session_id in await self._ports.store.abandoned(SWEEP_LIMIT):
            self.wake(session_id)


async def _unless_away(name: str, step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    except ServiceError as error:
        _log.warning("database not reached", work=name, reason=error.reason)
