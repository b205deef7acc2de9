"""Refresh tokens: each is used once; what a second use means.

The scheme is that of RFC 9700 §4.14.2 (rotation with detection of reuse), with a grace for a client whose answer got
lost on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final
from uuid import UUID

ACCESS_LIFETIME: Final = timedelta(minutes=60)
REFRESH_LIFETIME: Final = timedelta(days=7)
REUSE_GRACE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Client:
    """Where a call comes from.

    Args:
        address: the client's IP address as text; empty if unknown.
        user_agent: what the client calls itself.
    """

    address: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A stored refresh token: never the token itself.

    Args:
        family_id: all tokens that descend from one login.
        revoked: whether the family is.
        use_time: when it was exchanged; None while it is good.
        used_by: fingerprint of the client that exchanged it.
    """

    id: UUID
    family_id: UUID
    user_id: UUID
    organization_id: UUID
    expire_time: datetime
    revoked: bool
    use_time: datetime | None
    used_by: bytes | None


class Verdict(Enum):
    """What to do with a refresh token that was sent."""

    ROTATE = auto()
    """First use: it ends, its successor begins."""
    REPEAT = auto()
    """The same client again, within the grace: the same successor once more."""
    REVOKE = auto()
    """Somebody else, or too late: one of the two has stolen it, so the family ends."""
    REFUSE = auto()
    """Unknown, expired, or of a family that has ended."""


def judge(token: RefreshToken | None, client: bytes, now: datetime) -> Verdict:
    """Decides about a refresh token that was sent.

    Args:
        token: what is stored about it, None if nothing is.
        client: fingerprint of the client that sent it.
        now: the time.
    """
    if token is None or token.revoked or token.expire_time <= now:
        return Verdict.REFUSE
    if token.use_time is None:
        return Verdict.ROTATE
    # The clocks of two replicas may differ: a use "in the future" is a use just now.
    if token.used_by == client and now - token.use_time <= REUSE_GRACE:
        return Verdict.REPEAT
    return Verdict.REVOKE
