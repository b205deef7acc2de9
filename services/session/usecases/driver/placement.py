"""Chooses the executor of a turn: where the session's client lives, else the least loaded; and waits for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from uuid import UUID

from services.kernel.clock import Clock
from services.session.domain.driving import DrivenSession, DrivenTurn
from services.session.domain.turn_items import ExecutorInfo

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0
"""A place that another replica's turn frees is found after so long at most; one of this replica's at once."""


class Room:
    """Where the drivers of one replica wait for a place on an executor: first come, first served.

    Those of sessions in the background wait in a queue of their own: a place that they may not have must not find one
    of them at the head of those who may.
    """

    def __init__(self) -> None:
        self._interactive: deque[asyncio.Future[None]] = deque()
        self._background: deque[asyncio.Future[None]] = deque()

    def freed(self) -> None:
        """An attempt has ended: of each kind the driver that has waited longest looks again."""
        for waiting in (self._interactive, self._background):
            _wake_first(waiting)

    async def wait(
        self, woken: asyncio.Event, clock: Clock, seconds: float, *, background: bool = False
    ) -> None:
        """Waits until a place may be free, the driver is woken, or the time is over."""
        freed = asyncio.get_running_loop().create_future()
        queue = self._background if background else self._interactive
        queue.append(freed)
        others = [asyncio.ensure_future(woken.wait()), asyncio.ensure_future(clock.sleep(seconds))]
        try:
            await asyncio.wait((freed, *others), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if freed.done():
                # It was this driver's to look, and it will not.
                _wake_first(queue)
            raise
        finally:
            freed.cancel()
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if freed in queue:
                queue.remove(freed)


def _wake_first(waiting: deque[asyncio.Future[None]]) -> None:
    while waiting:
        turn = waiting.popleft()
        if not turn.done():
            turn.set_result(None)
            return


class Search:
    """One driver's search for a place; each time in vain it waits longer."""

    def __init__(self, room: Room, clock: Clock) -> None:
        """Args: room: where the replica's drivers wait; clock: for waiting."""
        self._room = room
        self._clock = clock
        self._pause = FIRST_PAUSE_SECONDS

    def choose(
        self, executors: Sequence[ExecutorInfo], session: DrivenSession, turn: DrivenTurn
    ) -> ExecutorInfo | None:
        """See `choose_executor`."""
        last = turn.executor_id or session.last_executor_id
        lost_on = turn.executor_id if turn.lost_attempts else None
        return choose_executor(executors, session.id, last, lost_on, background=session.background)

    async def wait(self, woken: asyncio.Event, *, background: bool = False) -> None:
        """There was no place: waits for one, or for a command."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        await self._room.wait(woken, self._clock, pause, background=background)

    def found(self) -> None:
        """The turn had its place."""
        self._pause = FIRST_PAUSE_SECONDS

    def left(self) -> None:
        """The attempt has ended, and its place is another's."""
        self.found()
        self._room.freed()


def choose_executor(
    executors: Sequence[ExecutorInfo],
    session_id: UUID,
    last_executor_id: str | None,
    lost_on: str | None = None,
    *,
    background: bool = False,
) -> ExecutorInfo | None:
    """Chooses an executor.

    Args:
        executors: Those that answered.
        session_id: The session; an executor that keeps its idle client needs no new process.
        last_executor_id: Where its last attempt ran: of those equally loaded it has the conversation's files.
        lost_on: Where an attempt at this turn was lost: of those equally loaded another one is better.
        background: Whether the session is in the background: some places are not for those.

    Returns:
        The executor, or None when none has room: an idle client of another session is room, a busy one is not, and
        one that is shutting down has none.
    """
    executors = [executor for executor in executors if not executor.draining and executor.takes(background)]
    with_client = [executor for executor in executors if session_id in executor.idle_session_ids]
    if with_client:
        return with_client[0]
    with_room = [executor for executor in executors if executor.busy_clients < executor.max_live_clients]
    if not with_room:
        return None
    return min(
        with_room,
        key=lambda executor: (
            executor.busy_clients / executor.max_live_clients,
            executor.executor_id == lost_on,
            executor.executor_id != last_executor_id,
            executor.live_clients,
            executor.executor_id,
        ),
    )
