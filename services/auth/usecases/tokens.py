"""Logging in and out, and refreshing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.auth.domain.accounts import Credentials, User, login_name
from services.auth.domain.errors import (
    account_inactive,
    credentials_invalid,
    login_throttled,
    refresh_token_invalid,
    refresh_token_reused,
)
from services.auth.domain.refresh import (
    ACCESS_LIFETIME,
    REFRESH_LIFETIME,
    Client,
    RefreshToken,
    Verdict,
    judge,
)
from services.auth.domain.throttle import LoginBuckets, network_of
from services.auth.usecases.gate import Gate
from services.auth.usecases.ports import (
    NewRefreshToken,
    PasswordHasher,
    SystemTransaction,
    Transactions,
    Vault,
)
from services.auth.usecases.signing_keys import SigningKeys
from services.kernel.clock import Clock
from services.kernel.ids import IdSource


@dataclass(frozen=True, slots=True)
class Tokens:
    """What somebody gets who has proved who they are.

    Args:
        expires_in: seconds until the access token expires.
        refresh_expires_in: seconds until the refresh token expires.
    """

    access_token: str
    refresh_token: str
    expires_in: int
    refresh_expires_in: int


class RefreshTokens:
    """Makes refresh tokens; what is stored of them are hashes."""

    def __init__(self, vault: Vault, ids: IdSource) -> None:
        """See the ports."""
        self._vault = vault
        self._ids = ids

    def hash(self, token: str) -> bytes:
        """What a token is found by."""
        return self._vault.keyed_hash("refresh token", token)

    def fingerprint(self, client: Client) -> bytes:
        """What two calls of one client have in common."""
        return self._vault.keyed_hash("client", client.address, client.user_agent)

    def successor(self, token: str) -> str:
        """The token that follows this one: it can be told again, though it is not stored."""
        return self._vault.successor(token)

    async def begin(self, transaction: SystemTransaction, user: User, client: Client, now: datetime) -> str:
        """Begins a family and returns its first token."""
        family_id = self._ids.new_id()
        token = self._vault.new_refresh_token()
        await transaction.create_refresh_family(family_id, user.id, user.organization_id, now)
        await self._add(transaction, token, family_id, user.id, user.organization_id, client, now)
        return token

    async def rotate(
        self,
        transaction: SystemTransaction,
        stored: RefreshToken,
        token: str,
        client: Client,
        now: datetime,
    ) -> str:
        """Ends a token and returns its successor."""
        successor = self.successor(token)
        await transaction.mark_refresh_token_used(stored.id, self.fingerprint(client), now)
        await self._add(
            transaction, successor, stored.family_id, stored.user_id, stored.organization_id, client, now
        )
        return successor

    async def _add(
        self,
        transaction: SystemTransaction,
        token: str,
        family_id: UUID,
        user_id: UUID,
        organization_id: UUID,
        client: Client,
        now: datetime,
    ) -> None:
        await transaction.add_refresh_token(
            NewRefreshToken(
                id=self._ids.new_id(),
                token_hash=self.hash(token),
                family_id=family_id,
                user_id=user_id,
                organization_id=organization_id,
                created_by=self.fingerprint(client),
                create_time=now,
                expire_time=now + REFRESH_LIFETIME,
            )
        )


class Login:
    """Exchanges a name and a password for tokens."""

    def __init__(
        self,
        transactions: Transactions,
        hasher: PasswordHasher,
        vault: Vault,
        keys: SigningKeys,
        refresh_tokens: RefreshTokens,
        gate: Gate,
        clock: Clock,
    ) -> None:
        """Args: gate: how many logins are between their throttle and their answer; see `gate`."""
        self._transactions = transactions
        self._hasher = hasher
        self._vault = vault
        self._keys = keys
        self._refresh_tokens = refresh_tokens
        self._gate = gate
        self._clock = clock

    async def __call__(self, *, email: str, username: str, password: str, client: Client) -> Tokens:
        """Returns the tokens of a new family.

        Args:
            email, username: one of the two, in any case.

        Raises:
            ServiceError: UNAUTHENTICATED (CREDENTIALS_INVALID, ACCOUNT_INACTIVE), RESOURCE_EXHAUSTED
                (LOGIN_THROTTLED), UNAVAILABLE (OVERLOADED).
        """
        name = login_name(email, username)
        async with self._gate:
            found, buckets = await self._begin(name, client)
            matches = await self._hasher.verify(password, found.password_hash if found else None)
            if found is None or not matches:
                raise credentials_invalid()
            better = None
            if self._hasher.is_outdated(found.password_hash):
                better = await self._hasher.hash(password)
            return await self._succeed(found, better, buckets, client)

    async def _begin(self, name: str, client: Client) -> tuple[Credentials | None, LoginBuckets]:
        """Finds the account and takes one try from its buckets.

        A name that nobody has is throttled like any other; buckets of an account go by its id, so that its e-mail
        address and its user name do not give twice the tries.
        """
        async with self._transactions.system() as transaction:
            found = await transaction.credentials_of(name)
            account = str(found.user.id) if found else name
            network = network_of(client.address)
            pair, whole, address = (
                self._vault.keyed_hash("login pair", account, network),
                self._vault.keyed_hash("login account", account),
                self._vault.keyed_hash("login address", network),
            )
            locked = await transaction.lock_buckets(pair, whole, address)
            buckets, wait = LoginBuckets(locked[pair], locked[whole], locked[address]).take(self._clock.now())
            if not wait:
                await transaction.save_buckets(buckets.pair, buckets.account, buckets.address)
        if wait:
            raise login_throttled(wait.total_seconds())
        return found, buckets

    async def _succeed(
        self, found: Credentials, better: str | None, buckets: LoginBuckets, client: Client
    ) -> Tokens:
        now = self._clock.now()
        async with self._transactions.system() as transaction:
            keys = (buckets.pair.key, buckets.account.key, buckets.address.key)
            locked = await transaction.lock_buckets(*keys)
            pair, whole, address = (locked[key] for key in keys)
            after = LoginBuckets(pair, whole, address).succeed(now)
            await transaction.save_buckets(after.pair, after.account, after.address)
            # It may have been deactivated while the password was looked at.
            user = await transaction.user_by_id(found.user.id)
            token = None
            if user is not None and user.active:
                if better is not None:
                    await transaction.replace_password_hash(user.id, found.password_hash, better)
                token = await self._refresh_tokens.begin(transaction, user, client, now)
        if user is None or token is None:
            raise account_inactive()
        return await _tokens(self._keys, user, token, REFRESH_LIFETIME.total_seconds())


class Refresh:
    """Exchanges a refresh token for new tokens."""

    def __init__(
        self, transactions: Transactions, keys: SigningKeys, refresh_tokens: RefreshTokens, clock: Clock
    ) -> None:
        """See the ports."""
        self._transactions = transactions
        self._keys = keys
        self._refresh_tokens = refresh_tokens
        self._clock = clock

    async def __call__(self, refresh_token: str, client: Client) -> Tokens:
        """Returns the token's successor with a new access token.

        Raises:
            ServiceError: UNAUTHENTICATED (REFRESH_TOKEN_INVALID, REFRESH_TOKEN_REUSED, ACCOUNT_INACTIVE).
        """
        now = self._clock.now()
        fingerprint = self._refresh_tokens.fingerprint(client)
        successor, lifetime = "", REFRESH_LIFETIME.total_seconds()
        # What is refused is refused after the commit: the revocation must stay.
        async with self._transactions.system() as transaction:
            stored = await transaction.lock_refresh_token(self._refresh_tokens.hash(refresh_token))
            verdict = judge(stored, fingerprint, now)
            user = await transaction.user_by_id(stored.user_id) if stored else None
            active = user is not None and user.active
            if stored is not None and verdict is Verdict.REVOKE:
                await transaction.revoke_refresh_family(stored.family_id, "REUSED", now)
            elif stored is not None and active and verdict is Verdict.ROTATE:
                successor = await self._refresh_tokens.rotate(transaction, stored, refresh_token, client, now)
            elif stored is not None and stored.use_time is not None and active and verdict is Verdict.REPEAT:
                successor = self._refresh_tokens.successor(refresh_token)
                lifetime -= (now - stored.use_time).total_seconds()
        if verdict is Verdict.REFUSE or user is None:
            raise refresh_token_invalid()
        if verdict is Verdict.REVOKE:
            raise refresh_token_reused()
        if not active:
            raise account_inactive()
        return await _tokens(self._keys, user, successor, lifetime)


class Logout:
    """Revokes the family of a refresh token."""

    def __init__(self, transactions: Transactions, refresh_tokens: RefreshTokens, clock: Clock) -> None:
        """See the ports."""
        self._transactions = transactions
        self._refresh_tokens = refresh_tokens
        self._clock = clock

    async def __call__(self, refresh_token: str) -> None:
        """Ends the family; a token that nobody knows is no error."""
        async with self._transactions.system() as transaction:
            stored = await transaction.lock_refresh_token(self._refresh_tokens.hash(refresh_token))
            if stored is not None:
                await transaction.revoke_refresh_family(stored.family_id, "LOGOUT", self._clock.now())


async def _tokens(keys: SigningKeys, user: User, refresh_token: str, refresh_seconds: float) -> Tokens:
    return Tokens(
        access_token=await keys.issue(user),
        refresh_token=refresh_token,
        expires_in=int(ACCESS_LIFETIME.total_seconds()),
        refresh_expires_in=int(refresh_seconds),
    )
