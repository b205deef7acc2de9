"""Makes text from agents storable: PostgreSQL refuses NUL, protobuf lone surrogates; both occur in tool output."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """Replaces what cannot be stored by U+FFFD, one for one, so that offsets in code points stay true."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def storable_json(value: Any) -> Any:
    """Does the same for every string in a JSON value, keys included."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(str(key)): storable_json(item) for key, item in value.items()}
    return value


def cut(text: str, most_bytes: int) -> str:
    """Cuts a storable text to a size in UTF-8, between two code points."""
    if len(text) * 4 <= most_bytes:
        return text
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[:most_bytes].decode(errors="ignore")


def size(text: str) -> int:
    """The size of a storable text in UTF-8, in bytes."""
    return len(text) if text.isascii() else len(text.encode())


def input_hash(tool_name: str, tool_input: dict[str, Any]) -> str:
    """Hashes a tool call: SHA-256 of its canonical JSON (keys sorted, no white space, as RFC 8785 has it)."""
    text = json.dumps([tool_name, tool_input], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
