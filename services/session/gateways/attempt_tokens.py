"""Tokens of attempts: signed by the session service for itself, carried by the executor.

They have no end of their own: an attempt may take as long as its turn, and its token is worth nothing once another
attempt has begun. Whoever shows one needs the executor's service token as well.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.session.domain.errors import transcript_token_invalid
from services.session.domain.transcripts import AttemptName

_TYPE: Final = "attempt"
_ALGORITHM: Final = "EdDSA"


class AttemptTokens:
    """Signs and checks; every replica has the same key."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        """Args: private_key: the session service's own."""
        self._private = private_key
        self._public = private_key.public_key()

    def sign(self, attempt: AttemptName) -> str:
        """Returns the attempt's token."""
        claims = {
            "session": str(attempt.session_id),
            "turn": str(attempt.turn_id),
            "attempt": attempt.attempt,
        }
        return jwt.encode(claims, self._private, algorithm=_ALGORITHM, headers={"typ": _TYPE})

    def check(self, token: str, attempt: AttemptName) -> None:
        """Raises ServiceError PERMISSION_DENIED with TRANSCRIPT_TOKEN_INVALID unless it is this attempt's."""
        try:
            # A service token is signed with the same key, and is none of ours.
            if jwt.get_unverified_header(token).get("typ") != _TYPE:
                raise transcript_token_invalid()
            claims = jwt.decode(token, self._public, algorithms=[_ALGORITHM])
            named = AttemptName(UUID(claims["session"]), UUID(claims["turn"]), int(claims["attempt"]))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise transcript_token_invalid() from None
        if named != attempt:
            raise transcript_token_invalid()
