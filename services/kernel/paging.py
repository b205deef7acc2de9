"""Keyset page tokens: where the next page begins, bound to the list that they came from.

A token is no secret and grants nothing: rows are still chosen by the caller's rights. It carries a hash of method,
filters and organization, so that a token of another list is refused instead of giving wrong pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.kernel.errors import FieldViolation, ServiceError, invalid_argument
from services.kernel.identity.keys import base64url_decode, base64url_encode

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
_HASH_BYTES: Final = 12
_MAX_TOKEN_CHARACTERS: Final = 2048

Key = str | int | float | bool | None | datetime | UUID


def filter_hash(method: str, organization_id: UUID, filters: Mapping[str, object]) -> bytes:
    """Returns what a token of this list is bound to.

    Args:
        method: name of the method that lists.
        organization_id: the caller's.
        filters: everything that chooses or orders rows; not page_size. Values are compared as text.
    """
    text = json.dumps(
        [method, str(organization_id), sorted((name, str(value)) for name, value in filters.items())],
        ensure_ascii=True,
    )
    return hashlib.sha256(text.encode()).digest()[:_HASH_BYTES]


def encode(filter_hash: bytes, keys: Sequence[Key]) -> str:
    """Returns the token of the page that follows the row with these keys."""
    body = json.dumps([_to_json(key) for key in keys], separators=(",", ":")).encode()
    return base64url_encode(filter_hash + body)


def decode(token: str, filter_hash: bytes, *, domain: str) -> tuple[Key, ...]:
    """Returns the keys of a token; callers check that their number and types are what the list sorts by.

    Args:
        domain: `<service>.aiagent`, of the error.

    Raises:
        ServiceError: INVALID_ARGUMENT, INVALID_REQUEST, field `page_token`.
    """
    if len(token) > _MAX_TOKEN_CHARACTERS:
        raise invalid_page_token(domain)
    try:
        raw = base64url_decode(token)
        if raw[:_HASH_BYTES] != filter_hash:
            raise invalid_page_token(domain)
        keys = json.loads(raw[_HASH_BYTES:])
        if not isinstance(keys, list):
            raise invalid_page_token(domain)
        return tuple(_from_json(key) for key in keys)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise invalid_page_token(domain) from None


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> int:
    """Returns how many rows to give; zero means the default, too many mean the maximum (AIP-158)."""
    return min(requested, maximum) if requested > 0 else default


def invalid_page_token(domain: str) -> ServiceError:
    """INVALID_ARGUMENT: the token was not given by this list."""
    description = "not a token of this list with these filters"
    return invalid_argument(
        "INVALID_REQUEST",
        f"page_token: {description}",
        domain=domain,
        violations=(FieldViolation("page_token", description, "PAGE_TOKEN_INVALID"),),
    )


def _to_json(key: Key) -> Any:
    if isinstance(key, datetime):
        return {"t": key.isoformat()}
    if isinstance(key, UUID):
        return {"u": key.hex}
    return key


def _from_json(value: Any) -> Key:
    if isinstance(value, dict):
        if "t" in value:
            moment = datetime.fromisoformat(value["t"])
            if moment.tzinfo is None:
                raise ValueError("a time without zone")
            return moment
        return UUID(str(value["u"]))
    # A token is in the client's hands: what PostgreSQL could not take must not reach it.
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("NUL")
        value.encode()
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("too large")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError("not a key")
