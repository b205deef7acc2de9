"""Service tokens: one service proves to another who it is, and in whose place it acts.

Each service has an Ed25519 key of its own; the others know its public half. Tokens live a minute and are bound to
their audience, so that one that leaks opens one service, briefly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kernel.errors import unauthenticated
from services.kernel.identity.caller import NOBODY, Caller, Role

LIFE_SECONDS = 60
_RENEW_SECONDS = 20
_TYPE = "service+jwt"


def public_key(private_key: bytes) -> bytes:
    """Returns the public half of a raw Ed25519 private key."""
    return (
        Ed25519PrivateKey.from_private_bytes(private_key)
        .public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )


class ServiceTokenSigner:
    """Signs the tokens of one service."""

    def __init__(self, service: str, private_key: bytes) -> None:
        """Args: service: its name; private_key: its Ed25519 key, raw."""
        self.service = service
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._cache: dict[tuple[str, UUID | None], tuple[float, str]] = {}

    def sign(self, audience: str, act_as: Caller | None = None) -> str:
        """Signs a token, or returns one that still lives long enough.

        Args:
            audience: The service to call.
            act_as: The user in whose place; None when the service calls for itself.

        Returns:
            The token.
        """
        now = time.time()
        cache_key = (audience, act_as.user_id if act_as else None)
        cached = self._cache.get(cache_key)
        if cached is not None and cached[0] - now > _RENEW_SECONDS:
            return cached[1]
        expires = now + LIFE_SECONDS
        claims: dict[str, object] = {
            "iss": self.service,
            "sub": self.service,
            "aud": audience,
            "iat": int(now),
            "exp": int(expires),
            "jti": str(uuid4()),
        }
        if act_as is not None:
            claims["act_as"] = {
                "sub": str(act_as.user_id),
                "org": str(act_as.organization_id),
                "email": act_as.email,
                "role": act_as.role.value,
            }
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"typ": _TYPE, "kid": self.service})
        if len(self._cache) > 1024:
            self._cache.clear()
        self._cache[cache_key] = (expires, token)
        return token


class ServiceTokenVerifier:
    """Verifies tokens that other services signed for this one."""

    def __init__(self, audience: str, trust: Mapping[str, bytes]) -> None:
        """Args: audience: this service; trust: the raw public key of each service that may call."""
        self._audience = audience
        self._trust = {name: Ed25519PublicKey.from_public_bytes(key) for name, key in trust.items()}
        self._known: dict[str, Caller] = {}

    @staticmethod
    def looks_like(token: str) -> bool:
        """Whether a token claims to be a service's; nothing is verified."""
        try:
            return jwt.get_unverified_header(token).get("typ") == _TYPE
        except jwt.InvalidTokenError:
            return False

    def verify(self, token: str) -> Caller:
        """Verifies a token.

        Raises:
            ServiceError: UNAUTHENTICATED with TOKEN_INVALID or TOKEN_EXPIRED.
        """
        known = self._known.get(token)
        if known is not None and known.token_expire_time > datetime.now(UTC):
            return known
        try:
            issuer = str(jwt.get_unverified_header(token).get("kid"))
            key = self._trust.get(issuer)
            if key is None:
                raise jwt.InvalidTokenError("unknown issuer")
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=self._audience,
                issuer=issuer,
                leeway=5,
                options={"require": ["exp", "aud", "iss", "jti"]},
            )
            acting = claims.get("act_as") or {}
            caller = Caller(
                user_id=UUID(acting["sub"]) if acting else NOBODY,
                organization_id=UUID(acting["org"]) if acting else NOBODY,
                email=str(acting.get("email", "")),
                role=Role(acting["role"]) if acting else Role.USER,
                token_expire_time=datetime.fromtimestamp(float(claims["exp"]), UTC),
                service=issuer,
            )
        except jwt.ExpiredSignatureError:
            raise unauthenticated("TOKEN_EXPIRED", "the service token has expired") from None
        except (jwt.InvalidTokenError, KeyError, ValueError, TypeError):
            raise unauthenticated("TOKEN_INVALID", "the service token is not valid") from None
        if len(self._known) > 1024:
            self._known.clear()
        self._known[token] = caller
        return caller
