"""JSON values from outside that are to be kept: what the database takes, and no more than is reasonable."""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 64 * 1024
"""Of all values that are given together, as JSON in UTF-8."""
MAX_DEPTH = 16
"""How deep lists and objects may be nested."""


def find_fault(value: Any) -> str | None:
    """Says what is wrong with a value, None when nothing is.

    Args:
        value: JSON as Python reads it.
    """
    if not _is_shallow(value, MAX_DEPTH):
        return f"is nested more than {MAX_DEPTH} deep"
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > MAX_BYTES:
        return f"is larger than {MAX_BYTES} bytes of JSON"
    # PostgreSQL has no U+0000 in its text.
    if _holds_nul(value):
        return "must not contain U+0000"
    return None


def _is_shallow(value: Any, depth: int) -> bool:
    match value:
        case dict():
            return depth > 0 and all(_is_shallow(inner, depth - 1) for inner in value.values())
        case list():
            return depth > 0 and all(_is_shallow(inner, depth - 1) for inner in value)
        case _:
            return True


def _holds_nul(value: Any) -> bool:
    match value:
        case dict():
            return any("\0" in key or _holds_nul(inner) for key, inner in value.items())
        case list():
            return any(_holds_nul(inner) for inner in value)
        case str():
            return "\0" in value
        case _:
            return False
