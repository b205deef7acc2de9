"""Secrets that lie in a database: sealed with a service's own key, and keys derived from one (HKDF, RFC 5869)."""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.kernel.identity.keys import base64url_decode

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"


class KeyRing:
    """The one secret of a service, and the keys derived from it, each for one purpose."""

    def __init__(self, secret: str, *, service: str) -> None:
        """Args:

        secret: 32 random bytes in base64url.
        service: whose it is; its setting is `AIAGENT_<SERVICE>_ENCRYPTION_KEY`.

        Raises:
            ValueError: it is something else.
        """
        self._setting = f"AIAGENT_{service.upper()}_ENCRYPTION_KEY"
        self._service = service
        try:
            self._raw = base64url_decode(secret)
        except ValueError:
            self._raw = b""
        if len(self._raw) != KEY_BYTES:
            raise ValueError(f"{self._setting} must be 32 bytes in base64url")

    def derive(self, purpose: str) -> bytes:
        """Returns the key for a purpose: the same one each time, and no way back from it."""
        info = f"aiagent/{self._service}/{purpose}".encode()
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(self._raw)

    def sealer(self) -> Sealer:
        """Returns what seals with the key for that."""
        return Sealer(self.derive("seal"), self._setting)


class Sealer:
    """Seals what is kept: version, nonce, AES-256-GCM with the thing's name as associated data."""

    def __init__(self, key: bytes, setting: str) -> None:
        """Args: key: 32 bytes; setting: where the operator sets what it comes from, for errors."""
        self._cipher = AESGCM(key)
        self._setting = setting

    def seal(self, secret: bytes, name: str) -> bytes:
        """Seals a secret; it opens under this name only."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Opens what `seal` made.

        Raises:
            ValueError: it was sealed with another key or under another name, or is broken.
        """
        version, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if version != _VERSION:
                raise ValueError
            return self._cipher.decrypt(nonce, rest, name.encode())
        except (InvalidTag, ValueError):
            raise ValueError(
                f"{self._setting} is not the key with which stored secrets were sealed"
            ) from None
