"""Access tokens of end users: EdDSA JSON Web Tokens, verified with the keys that auth publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import ServiceError, unauthenticated, unavailable
from services.kernel.identity.caller import Caller, Role
from services.kernel.identity.keys import base64url_decode, base64url_encode
from services.kernel.identity.verified_cache import VerifiedCache
from services.kernel.ids import IdSource, Uuid7Source

ISSUER: Final = "aiagent"
AUDIENCE: Final = "aiagent-api"
ALGORITHM: Final = "EdDSA"
_REFETCH_SECONDS: Final = 5.0
_CLAIMS: Final = ["sub", "email", "role", "exp", "iat", "jti", "org", "iss", "aud"]
_CLOCK_SKEW = timedelta(seconds=30)
_log = structlog.get_logger(__name__)

JwksDocument = Mapping[str, Any]
"""A JSON Web Key Set as read from JSON: `{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": …, "x": …}]}`."""


def public_jwk(key: Ed25519PublicKey, key_id: str) -> dict[str, str]:
    """Returns the JSON Web Key of a public key (RFC 8037)."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": ALGORITHM,
        "use": "sig",
        "kid": key_id,
        "x": base64url_encode(key.public_bytes_raw()),
    }


class AccessTokenIssuer:
    """Signs access tokens; the other half of JwksVerifier, so that claims are named in one place."""

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        key_id: str,
        *,
        clock: Clock | None = None,
        ids: IdSource | None = None,
    ) -> None:
        """Args: private_key: signs; key_id: the `kid` under which its public half is published."""
        self._key = private_key
        self._key_id = key_id
        self._clock = clock or SystemClock()
        self._ids = ids or Uuid7Source()

    def issue(
        self, *, user_id: UUID, organization_id: UUID, email: str, role: Role, lifetime: timedelta
    ) -> tuple[str, datetime]:
        """Returns a token and when it expires (UTC, whole seconds)."""
        now = self._clock.now().replace(microsecond=0)
        expire_time = now + lifetime
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "org": str(organization_id),
            "email": email,
            "role": role.value,
            "iat": int(now.timestamp()),
            "exp": int(expire_time.timestamp()),
            "jti": str(self._ids.new_id()),
        }
        token = jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self._key_id})
        return token, expire_time


class JwksVerifier:
    """Verifies access tokens; fetches the keys when it meets one that it does not know."""

    def __init__(self, fetch: Callable[[], Awaitable[JwksDocument]], *, clock: Clock | None = None) -> None:
        """Args: fetch: reads the key set from auth; may raise, the verifier then tries again later."""
        self._fetch = fetch
        self._clock = clock or SystemClock()
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._fetch_time: float | None = None
        self._fetched = False
        self._lock = asyncio.Lock()
        self._cache: VerifiedCache[Caller] = VerifiedCache(self._clock)

    async def verify(self, token: str) -> Caller:
        """Returns who the token names.

        Raises:
            ServiceError: UNAUTHENTICATED (TOKEN_INVALID, TOKEN_EXPIRED), or UNAVAILABLE (KEYS_UNAVAILABLE) while
                no key set could be read at all.
        """
        if (known := self._cache.get(token)) is not None:
            return known
        key = await self._key_for(token)
        try:
            # Time is checked below, by the clock that was given.
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={
                    "require": _CLAIMS,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
            caller = Caller(
                user_id=UUID(claims["sub"]),
                organization_id=UUID(claims["org"]),
                email=str(claims["email"]),
                role=Role(claims["role"]),
                service=None,
                token_expire_time=datetime.fromtimestamp(float(claims["exp"]), UTC),
            )
            issue_time = datetime.fromtimestamp(float(claims["iat"]), UTC)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError, AttributeError):
            raise _invalid() from None
        now = self._clock.now()
        if issue_time > now + _CLOCK_SKEW:
            raise _invalid()
        if caller.token_expire_time <= now:
            raise unauthenticated("TOKEN_EXPIRED", "the access token has expired")
        self._cache.put(token, caller, caller.token_expire_time)
        return caller

    async def _key_for(self, token: str) -> Ed25519PublicKey:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _invalid() from None
        key_id = header.get("kid")
        if header.get("alg") != ALGORITHM or not isinstance(key_id, str):
            raise _invalid()
        if (key := self._keys.get(key_id)) is not None:
            return key
        async with self._lock:
            await self._refresh(key_id)
        if (key := self._keys.get(key_id)) is not None:
            return key
        if not self._fetched:
            raise unavailable(
                "KEYS_UNAVAILABLE",
                "the keys that verify tokens cannot be read at the moment",
                retry_after_seconds=_REFETCH_SECONDS,
            )
        raise _invalid()

    async def _refresh(self, key_id: str) -> None:
        now = self._clock.monotonic()
        recent = self._fetch_time is not None and now - self._fetch_time < _REFETCH_SECONDS
        # While no set was ever read, nothing is cached that a flood of unknown ids could force out of date.
        if key_id in self._keys or (recent and self._fetched):
            return
        self._fetch_time = now
        try:
            document = await self._fetch()
            keys = _read_keys(document)
        except Exception as error:
            # Whatever the transport raises: the old keys stay good, the next unknown id tries again.
            _log.warning("key set not read", error=type(error).__name__)
            return
        self._keys = keys
        self._fetched = True


def _read_keys(document: JwksDocument) -> dict[str, Ed25519PublicKey]:
    keys: dict[str, Ed25519PublicKey] = {}
    for entry in document["keys"]:
        if entry.get("kty") == "OKP" and entry.get("crv") == "Ed25519" and entry.get("kid"):
            keys[entry["kid"]] = Ed25519PublicKey.from_public_bytes(base64url_decode(entry["x"]))
    return keys


def _invalid() -> ServiceError:
    return unauthenticated("TOKEN_INVALID", "the access token is not valid")
