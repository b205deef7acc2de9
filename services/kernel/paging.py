"""Keyset pages: a token carries the sort keys of the last row, and a hash of what the list was asked for.

A token is opaque, not secret: what it may reach is decided by the query it comes with, as for any other page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence

from services.kernel.errors import ServiceError, invalid_argument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_size(asked: int, *, default: int = DEFAULT_PAGE_SIZE) -> int:
    """Returns the number of rows for a request's `page_size`; 0 means the default."""
    return min(asked, MAX_PAGE_SIZE) if asked > 0 else default


def filter_hash(*parts: object) -> str:
    """Hashes what makes a list that list: its method, its filters, its caller's organization."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def encode(list_hash: str, keys: Sequence[str | int]) -> str:
    """Makes the token of the page after the row with these sort keys."""
    text = json.dumps([list_hash, *keys], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(token: str, list_hash: str, kinds: Sequence[type]) -> tuple[str | int, ...] | None:
    """Reads a token.

    Args:
        token: The token; empty for the first page.
        list_hash: `filter_hash` of the list it is used with.
        kinds: The types of the sort keys.

    Returns:
        The sort keys, or None for the first page.

    Raises:
        ServiceError: INVALID_ARGUMENT for the field `page_token`: it is broken, or another list's.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        found = json.loads(base64.b64decode(padded.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, UnicodeError, RecursionError):
        raise _invalid("it is not a token of this server") from None
    if not isinstance(found, list) or len(found) != len(kinds) + 1:
        raise _invalid("it is not a token of this server")
    if found[0] != list_hash:
        raise _invalid("it belongs to another list, or to other filters")
    keys = found[1:]
    if any(type(key) is not kind for key, kind in zip(keys, kinds, strict=True)):
        raise _invalid("it is not a token of this server")
    return tuple(keys)


def _invalid(why: str) -> ServiceError:
    return invalid_argument("page_token", why)
