"""Registering, and who one is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.auth.domain.accounts import NewAccount, User, canonical_email, check_new_password
from services.auth.domain.errors import account_inactive
from services.auth.usecases.ports import PasswordHasher, Transactions, Vault
from services.kernel.clock import Clock
from services.kernel.identity.caller import Caller, Role
from services.kernel.ids import IdSource


@dataclass(frozen=True, slots=True)
class Registration:
    """What a person gives to get an account."""

    email: str
    username: str
    password: str
    full_name: str
    request_id: str = ""


class Register:
    """Creates an account with its personal organization."""

    def __init__(
        self,
        transactions: Transactions,
        hasher: PasswordHasher,
        vault: Vault,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        """See the ports."""
        self._transactions = transactions
        self._hasher = hasher
        self._vault = vault
        self._clock = clock
        self._ids = ids

    async def __call__(self, registration: Registration) -> User:
        """Returns the new account; for a repeated `request_id` the answer of the first call.

        The caller is anonymous, so the id is its e-mail address's: two clients that both begin to count at 1 do not
        meet.

        Raises:
            ServiceError: ALREADY_EXISTS (EMAIL_TAKEN, USERNAME_TAKEN), INVALID_ARGUMENT (REQUEST_ID_REUSED,
                INVALID_REQUEST), UNAVAILABLE (OVERLOADED).
        """
        check_new_password(registration.password)
        email = canonical_email(registration.email)
        password_hash = await self._hasher.hash(registration.password)
        async with self._transactions.system() as transaction:

            async def create() -> bytes:
                user = await transaction.create_account(
                    NewAccount(
                        user_id=self._ids.new_id(),
                        organization_id=self._ids.new_id(),
                        email=email,
                        username=registration.username,
                        full_name=registration.full_name,
                        role=Role.USER,
                        password_hash=password_hash,
                        create_time=self._clock.now(),
                    )
                )
                return _to_bytes(user)

            answer = await transaction.once(
                email, "Register", registration.request_id, self._canonical(registration, email), create
            )
        return _from_bytes(answer)

    def _canonical(self, registration: Registration, email: str) -> bytes:
        # A plain hash of the request is stored: a guessable password must not be in it as it stands.
        password = self._vault.keyed_hash("registered password", registration.password).hex()
        return json.dumps([email, registration.username, registration.full_name, password]).encode()


class GetMe:
    """Returns the caller's account."""

    def __init__(self, transactions: Transactions) -> None:
        """See the ports."""
        self._transactions = transactions

    async def __call__(self, caller: Caller) -> User:
        """Returns the account as it is now, which may be newer than the token.

        Raises:
            ServiceError: UNAUTHENTICATED, ACCOUNT_INACTIVE, when the account is there no more.
        """
        async with self._transactions.tenant(caller) as transaction:
            user = await transaction.user_by_id(caller.user_id)
        if user is None:
            raise account_inactive()
        return user


def _to_bytes(user: User) -> bytes:
    return json.dumps(
        {
            "id": str(user.id),
            "email": user.email,
            "username": user.username,
            "full_name": user.full_name,
            "role": user.role.value,
            "organization_id": str(user.organization_id),
            "active": user.active,
            "create_time": user.create_time.isoformat(),
            "update_time": user.update_time.isoformat(),
        }
    ).encode()


def _from_bytes(stored: bytes) -> User:
    fields = json.loads(stored)
    return User(
        id=UUID(fields["id"]),
        email=fields["email"],
        username=fields["username"],
        full_name=fields["full_name"],
        role=Role(fields["role"]),
        organization_id=UUID(fields["organization_id"]),
        active=fields["active"],
        create_time=datetime.fromisoformat(fields["create_time"]),
        update_time=datetime.fromisoformat(fields["update_time"]),
    )
