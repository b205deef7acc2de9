"""The first administrator: made at the first start, so that somebody can get in."""

from __future__ import annotations

import secrets
from typing import Final

import structlog

from services.auth.domain.accounts import NewAccount, canonical_email
from services.auth.usecases.ports import PasswordFile, PasswordHasher, Transactions
from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.identity.caller import Role
from services.kernel.ids import IdSource

_log = structlog.get_logger(__name__)
_USERNAME: Final = "admin"
_PASSWORD_BYTES: Final = 18


class CreateFirstAdministrator:
    """Makes an administrator where there is none."""

    def __init__(
        self,
        transactions: Transactions,
        hasher: PasswordHasher,
        file: PasswordFile,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        """See the ports."""
        self._transactions = transactions
        self._hasher = hasher
        self._file = file
        self._clock = clock
        self._ids = ids

    async def __call__(self, email: str) -> str | None:
        """Returns the new administrator's password, None if there was an administrator already.

        The password is in its file before the account is committed: a crash between the two leaves a file that the
        next start overwrites, never an account that nobody can use.

        Args:
            email: of the administrator.

        Raises:
            FileNotWritten: the password's file cannot be written.
            ValueError: the address or the name `admin` belongs to somebody who is no administrator.
        """
        # Looked at first without the lock, and before the work that a hash is.
        async with self._transactions.system() as transaction:
            if await transaction.has_administrator():
                return None
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        password_hash = await self._hasher.hash(password)
        async with self._transactions.system() as transaction:
            await transaction.lock_first_start()
            if await transaction.has_administrator():
                return None
            try:
                await transaction.create_account(
                    NewAccount(
                        user_id=self._ids.new_id(),
                        organization_id=self._ids.new_id(),
                        email=canonical_email(email),
                        username=_USERNAME,
                        full_name="Administrator",
                        role=Role.ADMIN,
                        password_hash=password_hash,
                        create_time=self._clock.now(),
                    )
                )
            except ServiceError as error:
                if error.kind is not ErrorKind.ALREADY_EXISTS:
                    raise
                raise ValueError(
                    f"no administrator exists, and {email} or the user name {_USERNAME} belongs to another account; "
                    "set AIAGENT_ADMIN_EMAIL, or give that account the role"
                ) from None
            self._file.write(password)
        _log.info("administrator created", email=canonical_email(email))
        return password
