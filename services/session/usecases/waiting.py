"""Waits for what becomes of a turn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.kernel.clock import Clock
from services.kernel.identity import Caller
from services.session.domain.entities import PermissionRequest, Turn
from services.session.domain.gate import Delta, GateEvent
from services.session.domain.states import TurnState
from services.session.usecases.ports import (
    DrainFrame,
    EventsFrame,
    Frame,
    HeadFrame,
    SessionStore,
    WatchFeedPort,
)
from services.session.usecases.queue import placed

LOOK_SECONDS = 15.0
"""The longest wait for one frame."""
DEFAULT_WAIT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Waited:
    """A turn as it stands after waiting, with the questions that wait for a person."""

    turn: Turn
    permission_requests: list[PermissionRequest]
    now: datetime
    last_sequence: int


class Waiting:
    """The use case."""

    def __init__(self, store: SessionStore, feed: WatchFeedPort, clock: Clock) -> None:
        """Args: store: the database; feed: what is new; clock: for times."""
        self._store = store
        self._feed = feed
        self._clock = clock

    async def wait(self, caller: Caller, session_id: UUID, turn_id: UUID, wait_seconds: int | None) -> Waited:
        """Waits until a turn has ended, or a person is asked, or the time is up.

        Args:
            caller: Who waits.
            session_id: The session.
            turn_id: The turn.
            wait_seconds: How long; None for ten minutes.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or TURN_NOT_FOUND.
        """
        left = float(DEFAULT_WAIT_SECONDS if wait_seconds is None else wait_seconds)
        end = self._clock.monotonic() + left
        async with self._feed.subscribe(session_id) as subscription:
            while True:
                waited = await self._look(caller, session_id, turn_id)
                told = _Told(turn_id, waited.last_sequence)
                left = end - self._clock.monotonic()
                if waited.turn.state.final or waited.permission_requests or left <= 0:
                    return waited
                frames: list[Frame] = []
                while left > 0 and not (subscription.overflowed or any(map(told.of_an_end, frames))):
                    frames = await subscription.take(min(left, LOOK_SECONDS))
                    left = end - self._clock.monotonic()
                # What was lost may have been the turn's end: it is looked at again.
                subscription.overflowed = False
                if any(isinstance(frame, DrainFrame) for frame in frames):
                    return await self._look(caller, session_id, turn_id)

    async def _look(self, caller: Caller, session_id: UUID, turn_id: UUID) -> Waited:
        async with self._store.begin(caller) as transaction:
            # Before the turn: what is written meanwhile is told again.
            session = await transaction.get_session(session_id)
            turn = await transaction.get_turn(session_id, turn_id)
            questions: list[PermissionRequest] = []
            if turn.state is TurnState.WAITING:
                pending = await transaction.list_permission_requests(
                    session_id, None, ("PENDING",), None, 100
                )
                questions = [question for question in pending if question.turn_id == turn_id]
            now = await transaction.now()
        (turn,) = await placed(self._store, [turn])
        return Waited(turn, questions, now, session.last_sequence)


class _Told:
    """What somebody who waits has heard of since they looked: most of it does not end the waiting."""

    def __init__(self, turn_id: UUID, sequence: int) -> None:
        self._turn_id = turn_id
        self._sequence = sequence

    def of_an_end(self, frame: Frame) -> bool:
        """Whether the turn may have ended, or a person be asked, or this must end: by the frame, or by one missing."""
        match frame:
            case Delta():
                return False
            case HeadFrame():
                return frame.sequence > self._sequence
            case EventsFrame():
                matters = [self._matters(event) for event in frame.events]
                return any(matters)
        return True

    def _matters(self, event: GateEvent) -> bool:
        missing = event.sequence > self._sequence + 1
        self._sequence = max(self._sequence, event.sequence)
        return missing or self._turn_id in (event.ends_turn, event.asks_in_turn)
