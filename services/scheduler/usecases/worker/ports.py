"""What the worker needs of the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from services.scheduler.domain.runs import Claim, Outcome, TurnNow
from services.scheduler.domain.states import RunState


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a worker learns when it renews its leases.

    Attributes:
        lost: The runs that are another worker's, or gone.
        cancelled: The runs for whose end somebody has asked.
    """

    lost: frozenset[UUID] = frozenset()
    cancelled: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought.

    Attributes:
        runs: The runs that are the worker's now.
        next_seconds: Where there are none: until when the next one that waits for its time may be had; None if none
            does.
    """

    runs: list[Claim]
    next_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the attempt of a claim has come: all that is known of it by now, also what was recorded before.

    Attributes:
        claim: The run.
        session_id: The attempt's session; None if there is none yet.
        turn_id: The same of its turn.
        outcome: How it has ended; None while it goes on.
        pause: With an outcome: how long to wait before the next attempt; None if there is to be none.
    """

    claim: Claim
    session_id: UUID | None = None
    turn_id: UUID | None = None
    outcome: Outcome | None = None
    pause: timedelta | None = None


class Unwritten(Enum):
    """Why a step was not written that may be later."""

    LOCKED = "LOCKED"
    """Somebody else has the run, or its schedule, under a lock at this moment."""


NOT_YET: Final = Unwritten.LOCKED
type Recorded = RunState | Literal[Unwritten.LOCKED] | None
"""What became of a step: the run's state now; NOT_YET where nothing of it was written, since somebody else has the run
or its schedule under a lock; None where another worker has the run, or it is gone."""


class RunQueue(Protocol):
    """The runs of all tenants, as workers see them.

    All methods raise ServiceError UNAVAILABLE while the database is away.
    """

    async def claim(self, holder: str, limit: int) -> Claimed:
        """Takes at most `limit` runs: those whose worker died, and only if there are none those that wait."""

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Renews leases."""

    async def record(self, steps: Sequence[Progress]) -> list[Recorded]:
        """Records how far attempts have come, at most one step for each claim; waits for nobody's locks.

        Returns:
            What became of each step.
        """

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back; those that are lost already are left alone."""

    async def hopeless(self) -> list[UUID]:
        """The runs that were taken over as often as may be, and that no worker has: nobody takes them any more."""

    async def give_up(self, run_id: UUID, holder: str) -> Claim | None:
        """Ends such a run; returns it with its turn, or None where it is no such run any more."""

    async def end_of_deleted_tasks(self) -> int:
        """Ends runs that wait and whose task was deleted, a bounded number; returns how many."""

    async def promote_forgotten(self) -> int:
        """Queues runs that are held back behind nothing; returns how many."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The user for whom sessions are made."""

    user_id: UUID
    organization_id: UUID


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session for an attempt; `sdk_options` is the JSON form of `aiagent.session.v1.AgentOptions`."""

    name: str
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    turn_timeout: timedelta


class Sessions(Protocol):
    """The session service.

    Whoever repeats a call with the same request id gets the first one's answer. All methods raise ServiceError as the
    service does; UNAVAILABLE, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED tell that trying again may help.
    """

    async def create_session(self, owner: Owner, new: NewSession, request_id: str) -> UUID:
        """Creates a session of the owner's; returns its id."""

    async def send_message(self, owner: Owner, session_id: UUID, message: str, request_id: str) -> UUID:
        """Sends a message; returns the id of the turn that it starts."""

    async def wait_turn(self, owner: Owner, session_id: UUID, turn_id: UUID, seconds: int) -> TurnNow:
        """Waits for the end of a turn; returns it as it stands then, or earlier than that, or after `seconds`."""

    async def interrupt(self, owner: Owner, session_id: UUID, turn_id: UUID, request_id: str) -> None:
        """Stops a turn; one that is over is no error."""
