"""Remembers for a short while what a token was verified to be, so that a busy caller costs one signature check."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from services.kernel.clock import Clock

_CAPACITY: Final = 10_000
# A key withdrawn from the key set stops working within this time.
_KEEP: Final = timedelta(seconds=60)


class VerifiedCache[T]:
    """A bounded map from token to value; it keeps hashes, not tokens."""

    def __init__(self, clock: Clock) -> None:
        """Args: clock: tells when an entry is over."""
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[T, datetime]] = OrderedDict()

    def get(self, token: str) -> T | None:
        """Returns the value of a token verified a moment ago that has not expired since."""
        key = _hash(token)
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if until <= self._clock.now():
            del self._entries[key]
            return None
        return value

    def put(self, token: str, value: T, expire_time: datetime) -> None:
        """Keeps the value until the token expires, for a minute at most."""
        self._entries[_hash(token)] = (value, min(expire_time, self._clock.now() + _KEEP))
        if len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
