"""Accounts and the names they are found by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.auth.domain.errors import password_too_long
from services.kernel.identity.caller import Role

MAX_PASSWORD_BYTES: Final = 72


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account.

    Args:
        email: lower case.
        username: as the person chose it; compared regardless of case.
        role: on the platform.
        organization_id: the personal organization.
        active: False once an administrator has deactivated the account.
    """

    id: UUID
    email: str
    username: str
    full_name: str
    role: Role
    organization_id: UUID
    active: bool
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What is stored for a new person: the account, its personal organization, and the membership between them."""

    user_id: UUID
    organization_id: UUID
    email: str
    username: str
    full_name: str
    role: Role
    password_hash: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account with the hash that its password must match."""

    user: User
    password_hash: str


def canonical_email(text: str) -> str:
    """The form in which e-mail addresses are stored and compared. The contract lets only ASCII through."""
    return text.strip().lower()


def canonical_username(text: str) -> str:
    """The form in which user names are compared; they are stored as they were written."""
    return text.strip().lower()


def login_name(email: str, username: str) -> str:
    """The one form of the name somebody logs in with; with an "@" it is an e-mail address, else a user name."""
    return canonical_email(email) if email else canonical_username(username)


def check_new_password(password: str) -> None:
    """Raises ServiceError INVALID_ARGUMENT, INVALID_REQUEST, when bcrypt would not read all of it."""
    if not fits_bcrypt(password):
        raise password_too_long()


def fits_bcrypt(password: str) -> bool:
    """Whether bcrypt reads the whole password."""
    return len(password.encode("utf-8")) <= MAX_PASSWORD_BYTES
