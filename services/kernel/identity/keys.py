"""Ed25519 keys as text: base64url of the raw 32 bytes, without padding."""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_RAW_BYTES = 32


def generate_private_key() -> Ed25519PrivateKey:
    """Returns a new random key."""
    return Ed25519PrivateKey.generate()


def base64url_encode(raw: bytes) -> str:
    """Encodes without padding, as RFC 7515 does."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Decodes with or without padding.

    Raises:
        ValueError: not base64url; the text itself is not repeated, it may be a secret.
    """
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64url") from None


def private_key_to_text(key: Ed25519PrivateKey) -> str:
    """Encodes the private key; the result is a secret."""
    return base64url_encode(key.private_bytes_raw())


def private_key_from_text(text: str) -> Ed25519PrivateKey:
    """Decodes a private key.

    Raises:
        ValueError: it is not 32 bytes in base64url.
    """
    raw = base64url_decode(text)
    if len(raw) != _RAW_BYTES:
        raise ValueError("an Ed25519 private key has 32 bytes")
    return Ed25519PrivateKey.from_private_bytes(raw)


def public_key_to_text(key: Ed25519PublicKey) -> str:
    """Encodes the public key."""
    return base64url_encode(key.public_bytes_raw())


def public_key_from_text(text: str) -> Ed25519PublicKey:
    """Decodes a public key.

    Raises:
        ValueError: it is not 32 bytes in base64url.
    """
    raw = base64url_decode(text)
    if len(raw) != _RAW_BYTES:
        raise ValueError("an Ed25519 public key has 32 bytes")
    return Ed25519PublicKey.from_public_bytes(raw)
