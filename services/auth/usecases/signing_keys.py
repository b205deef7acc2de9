"""The keys that sign access tokens: made at the first start, published, rotated."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.auth.domain.accounts import User
from services.auth.domain.refresh import ACCESS_LIFETIME
from services.auth.domain.signing import PUBLISH_BEFORE, SigningKey, is_published, signing_key
from services.auth.usecases.ports import SystemTransaction, Transactions, Vault
from services.kernel.clock import Clock
from services.kernel.errors import ServiceError
from services.kernel.identity.access_tokens import AccessTokenIssuer, JwksDocument, public_jwk
from services.kernel.ids import IdSource

_log = structlog.get_logger(__name__)
_RELOAD_SECONDS: Final = 30.0
# The first key is good at once, also for a replica whose clock is behind.
_BACKDATE: Final = timedelta(minutes=5)


class SigningKeys:
    """The keys as one replica knows them; read again every half minute, so that a rotation reaches all in time."""

    def __init__(self, transactions: Transactions, vault: Vault, clock: Clock, ids: IdSource) -> None:
        """Reads nothing yet; see `prepare`."""
        self._transactions = transactions
        self._vault = vault
        self._clock = clock
        self._ids = ids
        self._keys: list[SigningKey] = []
        self._issuers: dict[str, AccessTokenIssuer] = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Reads the keys; makes the first one where there is none. Replicas that start together make one.

        Raises:
            ValueError: the current key was sealed with another encryption key.
        """
        now = self._clock.now()
        async with self._transactions.system() as transaction:
            await transaction.lock_first_start()
            keys = await transaction.signing_keys()
            if not keys:
                await self._add(transaction, now - _BACKDATE)
                keys = await transaction.signing_keys()
        self._take(keys)
        self._issuer(self._current(now))

    async def rotate(self, publish_before: timedelta = PUBLISH_BEFORE) -> str:
        """Adds a key that signs after `publish_before`; the present one signs until then. Returns its key id."""
        async with self._transactions.system() as transaction:
            await transaction.lock_first_start()
            kid = await self._add(transaction, self._clock.now() + publish_before)
            keys = await transaction.signing_keys()
        self._take(keys)
        _log.info("signing key added", kid=kid)
        return kid

    async def issue(self, user: User) -> str:
        """Returns an access token for the user.

        Raises:
            ServiceError: UNAVAILABLE while the keys cannot be read and none is known.
        """
        await self._refresh()
        token, _ = self._issuer(self._current(self._clock.now())).issue(
            user_id=user.id,
            organization_id=user.organization_id,
            email=user.email,
            role=user.role,
            lifetime=ACCESS_LIFETIME,
        )
        return token

    async def key_set(self) -> JwksDocument:
        """The JSON Web Key Set: also those whose tokens may still be valid, or that sign soon."""
        await self._refresh()
        now = self._clock.now()
        return {
            "keys": [
                public_jwk(Ed25519PublicKey.from_public_bytes(key.public_key), key.kid)
                for key in self._keys
                if is_published(key, now)
            ]
        }

    async def _add(self, transaction: SystemTransaction, not_before: datetime) -> str:
        private = Ed25519PrivateKey.generate()
        kid = str(self._ids.new_id())
        await transaction.add_signing_key(
            SigningKey(
                kid=kid,
                public_key=private.public_key().public_bytes_raw(),
                sealed_private_key=self._vault.seal(private.private_bytes_raw(), kid),
                not_before=not_before,
                retire_time=None,
            )
        )
        return kid

    def _take(self, keys: list[SigningKey]) -> None:
        self._keys = keys
        self._read_at = self._clock.monotonic()

    async def _refresh(self) -> None:
        if self._fresh():
            return
        async with self._lock:
            if self._fresh():
                return
            try:
                async with self._transactions.system() as transaction:
                    keys = await transaction.signing_keys()
            except ServiceError as error:
                if not self._keys:
                    raise
                # What was read before is still true: keys are only ever added.
                _log.warning("signing keys not read again", reason=error.reason)
                keys = self._keys
            self._take(keys)

    def _fresh(self) -> bool:
        return self._read_at is not None and self._clock.monotonic() - self._read_at < _RELOAD_SECONDS

    def _current(self, now: datetime) -> SigningKey:
        key = signing_key(self._keys, now)
        if key is None:
            raise AssertionError("there is always a key that has not retired")
        return key

    def _issuer(self, key: SigningKey) -> AccessTokenIssuer:
        issuer = self._issuers.get(key.kid)
        if issuer is None:
            private = Ed25519PrivateKey.from_private_bytes(self._vault.open(key.sealed_private_key, key.kid))
            issuer = AccessTokenIssuer(private, key.kid, clock=self._clock, ids=self._ids)
            self._issuers[key.kid] = issuer
        return issuer
