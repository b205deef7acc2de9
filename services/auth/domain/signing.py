"""The life of the keys that sign access tokens.

A key is published before it signs, so that whoever keeps the key set for a while knows it in time, and stays
published until the last token it signed has expired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.auth.domain.refresh import ACCESS_LIFETIME

PUBLISH_BEFORE: Final = timedelta(minutes=10)
"""From a rotation to the new key's first signature; twice what the edge keeps a key set for."""
_CLOCK_SKEW: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A stored key.

    Args:
        kid: key id, in the header of the tokens it signed.
        public_key: 32 bytes (RFC 8032).
        sealed_private_key: encrypted.
        not_before: it signs from then on.
        retire_time: it signs no more from then on; None for the newest.
    """

    kid: str
    public_key: bytes
    sealed_private_key: bytes
    not_before: datetime
    retire_time: datetime | None


def signs(key: SigningKey, now: datetime) -> bool:
    """Whether this is the key that signs now."""
    return key.not_before <= now and (key.retire_time is None or now < key.retire_time)


def is_published(key: SigningKey, now: datetime) -> bool:
    """Whether the key belongs in the key set."""
    return key.retire_time is None or now < key.retire_time + ACCESS_LIFETIME + _CLOCK_SKEW


def signing_key(keys: Iterable[SigningKey], now: datetime) -> SigningKey | None:
    """The key that signs now; of several the newest."""
    return max((key for key in keys if signs(key, now)), key=lambda key: key.not_before, default=None)
