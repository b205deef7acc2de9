"""What the worker needs of the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
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


class RunQueue(Protocol):
    """The runs of all tenants, as workers see them.

    All methods raise ServiceError UNAVAILABLE while the database is away; those that write under a claim raise
    LeaseLost when another worker has the run, or it is gone.
    """

    async def claim(self, holder: str, limit: int) -> list[Claim]:
        """Takes at most `limit` runs: first those whose worker died, then those that wait."""

    async def renew(self, held: Sequence[Claim]) -> Renewal:
        """Renews leases."""

    async def note_session(self, claim: Claim, session_id: UUID) -> None:
        """Records the session of the attempt."""

    async def note_turn(self, claim: Claim, turn_id: UUID) -> None:
        """Records the turn of the attempt."""

    async def end(self, claim: Claim, outcome: Outcome, pause: timedelta | None) -> RunState:
        """Records how the attempt ended; with a pause another one follows. Returns the run's state."""

    async def release(self, held: Sequence[Claim]) -> None:
        """Gives leases back; those that are lost already are left alone."""


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
