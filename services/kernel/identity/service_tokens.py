"""Service tokens: each service signs with its own Ed25519 key, for one audience, for a minute.

They are asked for on loopback too: an agent's shell must not be able to call an internal method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import ServiceError, unauthenticated
from services.kernel.identity.caller import Caller, Role
from services.kernel.identity.verified_cache import VerifiedCache

TOKEN_TYPE: Final = "service"  # noqa: S105  # the `typ` of the header, no secret
_ALGORITHM: Final = "EdDSA"
_LIFETIME: Final = timedelta(seconds=60)
_RENEW_BEFORE: Final = timedelta(seconds=20)
_CLOCK_SKEW: Final = timedelta(seconds=30)
_CACHED_TOKENS: Final = 1_000


@dataclass(frozen=True, slots=True)
class VerifiedService:
    """A service that calls.

    Args:
        service: who signed.
        caller: the end user it acts for, if any.
        token_expire_time: UTC.
    """

    service: str
    caller: Caller | None
    token_expire_time: datetime


class ServiceTokenSigner:
    """Signs tokens of one service."""

    def __init__(self, service: str, private_key: Ed25519PrivateKey, *, clock: Clock | None = None) -> None:
        """Args: service: its name; private_key: its own key."""
        self.service = service
        self._key = private_key
        self._clock = clock or SystemClock()
        self._tokens: dict[tuple[str, Caller | None], tuple[str, datetime]] = {}

    def sign(self, audience: str, act_as: Caller | None = None) -> str:
        """Returns a token for the service `audience`, at least 20 s from its end; reused until then.

        Args:
            audience: name of the service to be called.
            act_as: the end user on whose behalf the call is made; the token does not outlive theirs.
        """
        now = self._clock.now()
        known = self._tokens.get((audience, act_as))
        if known is not None and known[1] - now > _RENEW_BEFORE:
            return known[0]
        expire_time = now + _LIFETIME
        claims: dict[str, Any] = {
            "iss": self.service,
            "aud": audience,
            "iat": int(now.timestamp()),
        }
        if act_as is not None:
            expire_time = min(expire_time, act_as.token_expire_time)
            claims["act_as"] = {
                "sub": str(act_as.user_id),
                "org": str(act_as.organization_id),
                "email": act_as.email,
                "role": act_as.role.value,
                "exp": int(act_as.token_expire_time.timestamp()),
            }
        claims["exp"] = int(expire_time.timestamp())
        token = jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"typ": TOKEN_TYPE})
        if len(self._tokens) >= _CACHED_TOKENS:
            self._tokens.clear()
        self._tokens[(audience, act_as)] = (token, expire_time)
        return token


class ServiceTokenVerifier:
    """Verifies tokens of the services it trusts that are meant for this service."""

    def __init__(
        self, trust: Mapping[str, Ed25519PublicKey], audience: str, *, clock: Clock | None = None
    ) -> None:
        """Args: trust: the public key of each service that may call; audience: this service's name."""
        self._trust = dict(trust)
        self._audience = audience
        self._clock = clock or SystemClock()
        self._cache: VerifiedCache[VerifiedService] = VerifiedCache(self._clock)

    def verify(self, token: str) -> VerifiedService:
        """Returns which service calls, and for whom.

        Raises:
            ServiceError: UNAUTHENTICATED, TOKEN_INVALID or TOKEN_EXPIRED.
        """
        if (known := self._cache.get(token)) is not None:
            return known
        try:
            verified, issue_time = self._read(token)
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            OSError,
            RecursionError,
        ):
            raise _invalid() from None
        now = self._clock.now()
        # A long life is refused too: whoever steals a key must not mint a token for ever.
        if (
            issue_time > now + _CLOCK_SKEW
            or verified.token_expire_time - issue_time > _LIFETIME + _CLOCK_SKEW
        ):
            raise _invalid()
        if verified.token_expire_time <= now:
            raise unauthenticated("TOKEN_EXPIRED", "the service token has expired")
        self._cache.put(token, verified, verified.token_expire_time)
        return verified

    def _read(self, token: str) -> tuple[VerifiedService, datetime]:
        if jwt.get_unverified_header(token).get("typ") != TOKEN_TYPE:
            raise ValueError("not a service token")
        # Who signed is only believed once the key that is trusted under that name has verified it.
        claimed = jwt.decode(token, options={"verify_signature": False})
        key = self._trust[str(claimed.get("iss"))]
        # Time is checked by the clock that was given.
        claims = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            audience=self._audience,
            options={
                "require": ["iss", "aud", "exp", "iat"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        service = str(claims["iss"])
        act_as = claims.get("act_as")
        verified = VerifiedService(
            service,
            _caller(act_as, service) if act_as is not None else None,
            datetime.fromtimestamp(float(claims["exp"]), UTC),
        )
        return verified, datetime.fromtimestamp(float(claims["iat"]), UTC)


def _caller(claims: Mapping[str, Any], service: str) -> Caller:
    return Caller(
        user_id=UUID(claims["sub"]),
        organization_id=UUID(claims["org"]),
        email=str(claims["email"]),
        role=Role(claims["role"]),
        service=service,
        token_expire_time=datetime.fromtimestamp(float(claims["exp"]), UTC),
    )


def _invalid() -> ServiceError:
    return unauthenticated("TOKEN_INVALID", "the service token is not valid")
