"""Watches runs: each as it stands, then whenever it has changed.

A run's version rises with every change, and is the cursor. There is one state to send, never a queue: a watcher that is
slow, or was away, gets the run as it stands by then. What is kept for a watcher is its place and a number.

Nothing here is needed for more than speed. A replica that dies takes its streams along; their clients go on with their
cursors elsewhere, where the database has what they lack.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.context import detached
from services.kernel.errors import ServiceError
from services.kernel.identity import Caller
from services.kernel.lifecycle import Drain
from services.kernel.supervision import repeat, supervise
from services.scheduler.domain.errors import (
    cursor_ahead,
    draining,
    run_not_found,
    token_expired,
    too_many_watches,
)
from services.scheduler.usecases.ports import SchedulerStore, ShownRun

_log = structlog.get_logger(__name__)
CHECKPOINT_SECONDS: Final = 15.0
MAX_PER_USER: Final = 100
"""How many streams a user may have open on one replica."""
LOOK_SECONDS: Final = 0.25
"""Between two looks at the watched runs where no commit of this process causes one: those of others are seen then."""
REST_SECONDS: Final = 0.02
"""At least between two looks: a process that commits hundreds of times a second is not asked as often."""

Versions = Callable[[Collection[UUID]], Awaitable[Mapping[UUID, int]]]
"""The version of each of these runs that is there."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a watcher is told: a run as it stands, or None for a checkpoint; and where to resume."""

    shown: ShownRun | None
    cursor: int


@dataclass(eq=False, slots=True)
class _Place:
    """One watcher: the newest version of its run that a look has found; None once the run is gone."""

    version: int | None = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class RunLooks:
    """Looks whether watched runs have changed: one query for all that the replica watches, only while it does."""

    def __init__(self, versions: Versions, drain: Drain, clock: Clock) -> None:
        """Args: versions: asks the database; drain: tells of the shutdown; clock: waits."""
        self._versions = versions
        self._drain = drain
        self._clock = clock
        self._places: dict[UUID, set[_Place]] = {}
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts looking."""
        for name, work in (
            ("run-looks", repeat("run-looks", self._look_when_due, self._clock, REST_SECONDS)),
            ("run-watch-drain", supervise("run-watch-drain", self._tell_of_drain, self._clock)),
        ):
            self._tasks.append(asyncio.create_task(work, name=name, context=detached()))

    async def stop(self) -> None:
        """Stops looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Causes a look now: this process has changed a run."""
        if self._places:
            self._woken.set()

    @property
    def draining(self) -> bool:
        """Whether streams are to end."""
        return self._drain.draining

    @contextmanager
    def place(self, run_id: UUID) -> Iterator[_Place]:
        """Includes a run in the looks while the block runs."""
        place = _Place()
        others = self._places.setdefault(run_id, set())
        others.add(place)
        # What has changed since the watcher read it is found by the next look, which is due from now on.
        self._woken.set()
        try:
            yield place
        finally:
            others.discard(place)
            if not others and self._places.get(run_id) is others:
                del self._places[run_id]

    async def _look_when_due(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS if self._places else None):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        watched = list(self._places)
        if not watched:
            return
        try:
            versions = await self._versions(watched)
        except ServiceError as error:
            # Streams stay open; the next look finds what has changed meanwhile.
            _log.warning("watched runs cannot be looked at", reason=error.reason)
            return
        for run_id in watched:
            version = versions.get(run_id)
            for place in self._places.get(run_id, ()):
                if version != place.version:
                    place.version = version
                    place.woken.set()

    async def _tell_of_drain(self) -> None:
        await self._drain.wait()
        for places in self._places.values():
            for place in places:
                place.woken.set()


class Watching:
    """The use case."""

    def __init__(
        self, store: SchedulerStore, looks: RunLooks, clock: Clock, *, max_per_user: int = MAX_PER_USER
    ) -> None:
        """Args: store: the database; looks: tell of changes; clock: for times; max_per_user: streams on one replica."""
        self._store = store
        self._looks = looks
        self._clock = clock
        self._max_per_user = max_per_user
        self._open: Counter[UUID] = Counter()

    @asynccontextmanager
    async def watch(self, caller: Caller, run_id: UUID, cursor: int) -> AsyncIterator[AsyncIterator[Seen]]:
        """Yields what a watcher is told, until the run is over. The watcher's place is held while the block runs.

        Args:
            caller: Who watches.
            run_id: What.
            cursor: Of the last change that was seen; 0 for none.

        Raises:
            ServiceError: as documented at SchedulerService.WatchTaskRun.
        """
        shown = await self._read(caller, run_id)
        if cursor > shown.run.version and not shown.run.state.final:
            raise cursor_ahead(shown.run.version)
        with self._counted(caller.user_id), self._looks.place(run_id) as place:
            changes = self._changes(caller, shown, cursor, place)
            del shown
            async with aclosing(changes):
                yield changes

    @contextmanager
    def _counted(self, user_id: UUID) -> Iterator[None]:
        if self._open[user_id] >= self._max_per_user:
            raise too_many_watches(self._max_per_user)
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    async def _read(self, caller: Caller, run_id: UUID) -> ShownRun:
        """Reads the run by the caller's rights, as they are at this moment."""
        async with self._store.begin(caller) as transaction:
            return await transaction.show_run(run_id)

    async def _changes(
        self, caller: Caller, shown: ShownRun, cursor: int, place: _Place
    ) -> AsyncGenerator[Seen]:
        run_id = shown.run.id
        while True:
            final = shown.run.state.final
            if shown.run.version > cursor:
                cursor = shown.run.version
                yield Seen(shown, cursor)
            if final:
                return
            # Whoever waits holds nothing but the number.
            del shown
            due = self._clock.monotonic() + CHECKPOINT_SECONDS
            while not await self._changed(caller, run_id, cursor, place, due):
                yield Seen(None, cursor)
                due = self._clock.monotonic() + CHECKPOINT_SECONDS
            shown = await self._read(caller, run_id)

    async def _changed(self, caller: Caller, run_id: UUID, cursor: int, place: _Place, due: float) -> bool:
        """Waits until the run has changed; False when a checkpoint is due first."""
        while True:
            place.woken.clear()
            left = (caller.token_expire_time - self._clock.now()).total_seconds()
            if self._looks.draining:
                raise draining()
            if left <= 0:
                raise token_expired()
            if place.version is None:
                raise run_not_found(run_id)
            if place.version > cursor:
                return True
            wait = due - self._clock.monotonic()
            if wait <= 0:
                return False
            try:
                async with asyncio.timeout(min(wait, left)):
                    await place.woken.wait()
            except TimeoutError:
                pass
