"""The verified caller of a call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """What a user may do on the platform."""

    ADMIN = "ADMIN"
    USER = "USER"
    VIEWER = "VIEWER"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        user_id: The user; the nil UUID when a service calls for itself.
        organization_id: Whose resources the call works with; nil likewise.
        email: The user's e-mail address; empty likewise.
        role: The user's role.
        token_expire_time: When the proof of this expires: no stream outlives it.
        service: The service that calls, for itself or in a user's place; None for an end user.
    """

    user_id: UUID
    organization_id: UUID
    email: str
    role: Role
    token_expire_time: datetime
    service: str | None = None


NOBODY = UUID(int=0)
"""The user of a service that calls for itself."""
