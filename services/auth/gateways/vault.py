"""The service's one secret, and what the keys derived from it are for beside sealing."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from services.kernel.identity.keys import base64url_encode
from services.kernel.sealing import KEY_BYTES, KeyRing

_TOKEN_PREFIX: Final = "aart_"  # noqa: S105  # lets scanners of leaked secrets recognise a token; no secret


class SecretVault:
    """See `usecases.ports.Vault`."""

    def __init__(self, secret: str) -> None:
        """Args: secret: 32 random bytes in base64url.

        Raises:
            ValueError: it is something else.
        """
        keys = KeyRing(secret, service="auth")
        self._sealer = keys.sealer()
        self._hash_key = keys.derive("keyed hash")
        self._successor_key = keys.derive("successor of a refresh token")

    def seal(self, secret: bytes, name: str) -> bytes:
        """See the port."""
        return self._sealer.seal(secret, name)

    def open(self, sealed: bytes, name: str) -> bytes:
        """See the port."""
        return self._sealer.open(sealed, name)

    def keyed_hash(self, purpose: str, *parts: str) -> bytes:
        """See the port. Lengths are part of what is hashed, so that no two lists of parts are one text."""
        texts = [part.encode("utf-8", "surrogatepass") for part in (purpose, *parts)]
        framed = b"".join(len(text).to_bytes(4, "big") + text for text in texts)
        return hmac.digest(self._hash_key, framed, "sha256")

    def new_refresh_token(self) -> str:
        """See the port."""
        return _TOKEN_PREFIX + base64url_encode(secrets.token_bytes(KEY_BYTES))

    def successor(self, token: str) -> str:
        """See the port."""
        digest = hmac.digest(self._successor_key, token.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return _TOKEN_PREFIX + base64url_encode(digest)
