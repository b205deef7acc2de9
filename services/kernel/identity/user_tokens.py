"""Verifies access tokens by the auth service's JSON Web Key Set."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jwt

from services.kernel.errors import unauthenticated
from services.kernel.identity.caller import Caller, Role

ISSUER = "aiagent"
AUDIENCE = "aiagent-api"
_REFETCH_SECONDS = 5.0
_CACHED_TOKENS = 4096
_LEEWAY_SECONDS = 5

Jwks = Sequence[dict[str, str]]
"""The keys of a set, each by the member names of RFC 7517."""


class JwksVerifier:
    """Verifies access tokens; keeps keys, and the callers of tokens seen before, so that a busy client costs no
    signature check per call."""

    def __init__(self, fetch: Callable[[], Awaitable[Jwks]]) -> None:
        """Args: fetch: gets the current key set."""
        self._fetch = fetch
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._known: OrderedDict[str, Caller] = OrderedDict()

    async def verify(self, token: str) -> Caller:
        """Verifies a token.

        Args:
            token: A JSON Web Token.

        Returns:
            The caller it names.

        Raises:
            ServiceError: UNAUTHENTICATED with TOKEN_INVALID or TOKEN_EXPIRED.
        """
        known = self._known.get(token)
        if known is not None:
            if known.token_expire_time <= datetime.now(UTC):
                del self._known[token]
                raise unauthenticated("TOKEN_EXPIRED", "the access token has expired")
            self._known.move_to_end(token)
            return known
        key = await self._key(token)
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "aud", "iss", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise unauthenticated("TOKEN_EXPIRED", "the access token has expired") from None
        except jwt.InvalidTokenError:
            raise _invalid() from None
        caller = _caller(claims)
        self._known[token] = caller
        if len(self._known) > _CACHED_TOKENS:
            self._known.popitem(last=False)
        return caller

    async def _key(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise _invalid() from None
        kid = header.get("kid")
        if not isinstance(kid, str) or header.get("alg") != "EdDSA":
            raise _invalid()
        if kid not in self._keys and time.monotonic() - self._fetched >= _REFETCH_SECONDS:
            keys = await self._fetch()
            self._fetched = time.monotonic()
            self._keys = {key["kid"]: jwt.PyJWK(dict(key)) for key in keys if key.get("kty") == "OKP"}
        if kid not in self._keys:
            raise _invalid()
        return self._keys[kid]


def _caller(claims: dict[str, Any]) -> Caller:
    try:
        return Caller(
            user_id=UUID(str(claims["sub"])),
            organization_id=UUID(str(claims["org"])),
            email=str(claims.get("email", "")),
            role=Role(str(claims["role"]).upper()),
            token_expire_time=datetime.fromtimestamp(float(claims["exp"]), UTC),
        )
    except (KeyError, ValueError):
        raise _invalid() from None


def _invalid() -> Exception:
    return unauthenticated("TOKEN_INVALID", "the access token is not valid")
