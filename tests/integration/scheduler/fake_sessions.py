"""The session service as far as workers use it, in memory; `tests/contract/scheduler` holds it to the real one.

What an agent does is named by the first word of its message: `greet` answers at once, `stay` works until it is stopped,
`fail` fails; a test may add others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from services.kernel.errors import ErrorKind, ServiceError
from services.scheduler.domain.runs import Failure, TurnNow, TurnState, Usage
from services.scheduler.usecases.worker.ports import NewSession, Owner

SPENT = {"usage": Usage(input_tokens=10, output_tokens=5), "cost_usd": 0.5}
OPEN = TurnNow(TurnState.OPEN)
ENDS: dict[str, TurnNow | None] = {
    "greet": TurnNow(TurnState.SUCCEEDED, result="hello there", **SPENT),  # type: ignore[arg-type]
    "fail": TurnNow(TurnState.FAILED, failure=Failure("MODEL_ERROR", "because of MODEL_ERROR"), **SPENT),  # type: ignore[arg-type]
    "stay": None,
}


def refused(kind: ErrorKind, reason: str) -> ServiceError:
    """A refusal of the session service."""
    return ServiceError(kind, reason=reason, domain="session.aiagent", message=reason)


@dataclass
class Turn:
    """A turn; it has begun when its message is there."""

    message: str
    now: TurnNow = OPEN
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, now: TurnNow) -> None:
        """Ends it."""
        self.now = now
        self.ended.set()


@dataclass
class Session:
    """A session of an owner's."""

    owner: Owner
    new: NewSession
    turns: dict[UUID, Turn] = field(default_factory=dict)


class FakeSessions:
    """See `usecases.worker.ports.Sessions`."""

    def __init__(self) -> None:
        self.sessions: dict[UUID, Session] = {}
        self.ends = dict(ENDS)
        self.prompts: list[str] = []
        """Every message that was taken, in order: one that came twice would be here twice."""
        self.fault: Callable[[str], ServiceError | None] = lambda call: None
        """Asked before each call, by its name: what it is answered with instead."""
        self.lost_answer: Callable[[str], ServiceError | None] = lambda call: None
        """As `fault`, after the call was carried out."""
        self.begun = asyncio.Event()
        self._done: dict[tuple[UUID, str, str], tuple[Any, UUID]] = {}

    def _once(self, owner: Owner, call: str, request_id: str, request: Any, do: Callable[[], UUID]) -> UUID:
        key = (owner.user_id, call, request_id)
        if key not in self._done:
            self._done[key] = (request, do())
        known, answer = self._done[key]
        if known != request:
            raise refused(ErrorKind.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
        return answer

    async def _meet(self, faults: Callable[[str], ServiceError | None], call: str) -> None:
        await asyncio.sleep(0)
        error = faults(call)
        if error is not None:
            raise error

    def _session(self, owner: Owner, session_id: UUID) -> Session:
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise refused(ErrorKind.NOT_FOUND, "SESSION_NOT_FOUND")
        return session

    async def create_session(self, owner: Owner, new: NewSession, request_id: str) -> UUID:
        """Creates a session."""
        await self._meet(self.fault, "create_session")

        def do() -> UUID:
            session_id = uuid4()
            self.sessions[session_id] = Session(owner, new)
            return session_id

        made = self._once(owner, "create_session", request_id, new, do)
        await self._meet(self.lost_answer, "create_session")
        return made

    async def send_message(self, owner: Owner, session_id: UUID, message: str, request_id: str) -> UUID:
        """Sends a message."""
        await self._meet(self.fault, "send_message")
        session = self._session(owner, session_id)

        def do() -> UUID:
            turn_id, turn = uuid4(), Turn(message)
            session.turns[turn_id] = turn
            self.prompts.append(message)
            end = self.ends.get(message.partition(" ")[0], ENDS["greet"])
            if end is not None:
                turn.end(end)
            self.begun.set()
            return turn_id

        sent = self._once(owner, "send_message", request_id, (session_id, message), do)
        await self._meet(self.lost_answer, "send_message")
        return sent

    async def wait_turn(self, owner: Owner, session_id: UUID, turn_id: UUID, seconds: int) -> TurnNow:
        """Waits for the end of a turn."""
        await self._meet(self.fault, "wait_turn")
        turn = self._session(owner, session_id).turns[turn_id]
        try:
            async with asyncio.timeout(seconds):
                await turn.ended.wait()
        except TimeoutError:
            pass
        return replace(turn.now)

    async def interrupt(self, owner: Owner, session_id: UUID, turn_id: UUID, request_id: str) -> None:
        """Stops a turn."""
        await self._meet(self.fault, "interrupt")
        turn = self._session(owner, session_id).turns[turn_id]
        if not turn.ended.is_set():
            turn.end(TurnNow(TurnState.INTERRUPTED, **SPENT))  # type: ignore[arg-type]
