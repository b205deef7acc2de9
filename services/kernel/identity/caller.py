"""The verified caller."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """What a user may do in the organization; the words stand in tokens and in row-level security."""

    ADMIN = "admin"
    USER = "user"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Caller:
    """An end user, as a verified token names them.

    Args:
        user_id: the user.
        organization_id: the tenant; every row they may see carries it.
        email: for logs and display.
        role: what they may do.
        service: the service that calls on the user's behalf, None when the user calls.
        token_expire_time: UTC; streams end then.
    """

    user_id: UUID
    organization_id: UUID
    email: str
    role: Role
    service: str | None
    token_expire_time: datetime
