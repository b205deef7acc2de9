"""The service's one secret, and the keys derived from it (HKDF, RFC 5869), each for one purpose."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.kernel.identity.keys import base64url_decode, base64url_encode

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"
_TOKEN_PREFIX: Final = "aart_"  # noqa: S105  # lets scanners of leaked secrets recognise a token; no secret


class SecretVault:
    """See `usecases.ports.Vault`."""

    def __init__(self, secret: str) -> None:
        """Args: secret: 32 random bytes in base64url.

        Raises:
            ValueError: it is something else.
        """
        raw = base64url_decode(secret)
        if len(raw) != _KEY_BYTES:
            raise ValueError("AIAGENT_AUTH_ENCRYPTION_KEY must be 32 bytes in base64url")
        self._cipher = AESGCM(_derive(raw, "seal"))
        self._hash_key = _derive(raw, "keyed hash")
        self._successor_key = _derive(raw, "successor of a refresh token")

    def seal(self, secret: bytes, name: str) -> bytes:
        """See the port: version, nonce, AES-256-GCM with the name as associated data."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """See the port."""
        version, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if version != _VERSION:
                raise ValueError
            return self._cipher.decrypt(nonce, rest, name.encode())
        except (InvalidTag, ValueError):
            raise ValueError(
                "AIAGENT_AUTH_ENCRYPTION_KEY is not the key with which the stored signing keys were sealed"
            ) from None

    def keyed_hash(self, purpose: str, *parts: str) -> bytes:
        """See the port. Lengths are part of what is hashed, so that no two lists of parts are one text."""
        texts = [part.encode("utf-8", "surrogatepass") for part in (purpose, *parts)]
        framed = b"".join(len(text).to_bytes(4, "big") + text for text in texts)
        return hmac.digest(self._hash_key, framed, "sha256")

    def new_refresh_token(self) -> str:
        """See the port."""
        return _TOKEN_PREFIX + base64url_encode(secrets.token_bytes(_KEY_BYTES))

    def successor(self, token: str) -> str:
        """See the port."""
        digest = hmac.digest(self._successor_key, token.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return _TOKEN_PREFIX + base64url_encode(digest)


def _derive(secret: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=f"aiagent/auth/{purpose}".encode()).derive(
        secret
    )
