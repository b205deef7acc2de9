"""What the use cases need of the outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.auth.domain.accounts import Credentials, NewAccount, User
from services.auth.domain.refresh import RefreshToken
from services.auth.domain.signing import SigningKey
from services.auth.domain.throttle import Bucket
from services.kernel.identity.caller import Caller


@dataclass(frozen=True, slots=True)
class NewRefreshToken:
    """A refresh token to be stored, by its hash.

    Args:
        created_by: fingerprint of the client that gets it.
    """

    id: UUID
    token_hash: bytes
    family_id: UUID
    user_id: UUID
    organization_id: UUID
    created_by: bytes
    create_time: datetime
    expire_time: datetime


class SystemTransaction(Protocol):
    """One transaction of the system role: every query that is made without a verified caller, by name."""

    async def once(
        self, scope: str, method: str, request_id: str, request: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Runs `run` unless it has run for this id; see `kernel.db.idempotency.once`.

        Args:
            scope: whose id it is; an anonymous caller is told apart by what it registers.
        """
        ...

    async def create_account(self, account: NewAccount) -> User:
        """Writes account, organization and membership.

        Raises:
            ServiceError: ALREADY_EXISTS, EMAIL_TAKEN or USERNAME_TAKEN.
        """
        ...

    async def credentials_of(self, name: str) -> Credentials | None:
        """The account of a login name (see `domain.accounts.login_name`)."""
        ...

    async def user_by_id(self, user_id: UUID) -> User | None:
        """The account, whoever asks."""
        ...

    async def replace_password_hash(self, user_id: UUID, old_hash: str, new_hash: str) -> None:
        """Replaces the hash of an unchanged password; nothing happens if it has changed meanwhile."""
        ...

    async def lock_first_start(self) -> None:
        """Until the transaction's end no other replica makes what exists once."""
        ...

    async def has_administrator(self) -> bool:
        """Whether any account has the role of an administrator."""
        ...

    async def lock_buckets(self, *keys: bytes) -> Mapping[bytes, Bucket]:
        """The buckets with these keys, locked; those that were not there are empty."""
        ...

    async def save_buckets(self, *buckets: Bucket) -> None:
        """Writes buckets that `lock_buckets` has locked."""
        ...

    async def create_refresh_family(
        self, family_id: UUID, user_id: UUID, organization_id: UUID, create_time: datetime
    ) -> None:
        """Begins the family of one login."""
        ...

    async def add_refresh_token(self, token: NewRefreshToken) -> None:
        """Stores a token of an existing family."""
        ...

    async def lock_refresh_token(self, token_hash: bytes) -> RefreshToken | None:
        """The token, its family locked: nobody else rotates or revokes it meanwhile."""
        ...

    async def mark_refresh_token_used(self, token_id: UUID, client: bytes, now: datetime) -> None:
        """Ends a token that was exchanged."""
        ...

    async def revoke_refresh_family(self, family_id: UUID, reason: str, now: datetime) -> None:
        """Ends a family; a family that has ended keeps its first reason."""
        ...

    async def signing_keys(self) -> list[SigningKey]:
        """Every signing key."""
        ...

    async def add_signing_key(self, key: SigningKey) -> None:
        """Adds a key; the one before it retires at the new one's `not_before`."""
        ...

    async def purge(self, now: datetime) -> int:
        """Deletes what has no more meaning, a bounded number of rows; returns how many."""
        ...


class TenantTransaction(Protocol):
    """One transaction that sees only the caller's rows."""

    async def user_by_id(self, user_id: UUID) -> User | None:
        """The account, if the caller may see it."""
        ...


class Transactions(Protocol):
    """Opens transactions: commit at the end, rollback on any error."""

    def system(self) -> AbstractAsyncContextManager[SystemTransaction]:
        """For work without a caller."""
        ...

    def tenant(self, caller: Caller) -> AbstractAsyncContextManager[TenantTransaction]:
        """For work of a caller."""
        ...


class PasswordHasher(Protocol):
    """Slow hashes."""

    async def hash(self, password: str) -> str:
        """Returns the salted hash.

        Raises:
            ServiceError: UNAVAILABLE, OVERLOADED.
        """
        ...

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the hash is the password's; without a hash it is False after the same work.

        Raises:
            ServiceError: UNAVAILABLE, OVERLOADED.
        """
        ...

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a new hash of the same password would cost another effort than this one did."""
        ...


class Vault(Protocol):
    """Whatever needs the service's secret."""

    def seal(self, secret: bytes, name: str) -> bytes:
        """Encrypts; only `open` with the same name reads it."""
        ...

    def open(self, sealed: bytes, name: str) -> bytes:
        """Decrypts.

        Raises:
            ValueError: sealed with another key, under another name, or damaged.
        """
        ...

    def keyed_hash(self, purpose: str, *parts: str) -> bytes:
        """32 bytes that nobody computes, or recognises by trying, without the secret."""
        ...

    def new_refresh_token(self) -> str:
        """A random token."""
        ...

    def successor(self, token: str) -> str:
        """The one token that follows this one: always the same."""
        ...


class FileNotWritten(Exception):
    """The state directory does not take a file; the message is one line for an operator."""


class PasswordFile(Protocol):
    """Where the first administrator's password is kept."""

    def write(self, password: str) -> None:
        """Writes it durably, readable by its owner only, whole or not at all.

        Raises:
            FileNotWritten: it cannot be written.
        """
        ...
