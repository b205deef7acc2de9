"""How large a request may be in its parts: counted before anything walks over all of it.

Rules of a contract and conversions to JSON cost microseconds for each part of a message, on the event loop; a few
megabytes can hold millions of parts. So they are counted first, and the count ends with the first part too many: a list
tells its length without being read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.message import Message

from services.kernel.errors import FieldViolation

MAX_PARTS: Final = 40_000
"""Elements of lists and maps, all together: more than 64 KiB of JSON can hold."""
MAX_STRUCTURE_BYTES: Final = 2 * 1024 * 1024
"""Of one free-form value; more than any that a service takes."""
_STRUCTURES: Final = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))


def oversize(request: Message) -> FieldViolation | None:
    """Finds what makes a request too large to be looked at.

    How deep a message is nested needs no look: the parser takes a hundred levels.

    Args:
        request: Any message; of a hostile one at most `MAX_PARTS` parts are seen.

    Returns:
        The field, as `variables[3].default_value`, and its fault; None for a request that may be looked at.
    """
    parts = 0
    # What is within a free-form value is told by the name of the value's field.
    waiting: list[tuple[Message, str, bool]] = [(request, "", False)]
    while waiting:
        message, path, free = waiting.pop()
        for field, value in message.ListFields():
            if field.message_type is None and not field.is_repeated:
                continue
            name = path if free else f"{path}.{field.name}" if path else field.name
            if field.is_repeated:
                parts += len(value)
                if parts > MAX_PARTS:
                    return FieldViolation(
                        name, f"must have at most {MAX_PARTS} parts, with all of the request", "TOO_LARGE"
                    )
                found: Iterable[tuple[str, Any]] = _elements(name, value, free)
            else:
                found = ((name, value),)
            for where, inner in found:
                if not isinstance(inner, Message):
                    break
                is_structure = not free and inner.DESCRIPTOR.full_name in _STRUCTURES
                if is_structure and inner.ByteSize() > MAX_STRUCTURE_BYTES:
                    return FieldViolation(
                        where, f"must have at most {MAX_STRUCTURE_BYTES} bytes", "TOO_LARGE"
                    )
                waiting.append((inner, where, free or is_structure))
    return None


def _elements(name: str, value: Any, free: bool) -> Iterable[tuple[str, Any]]:
    # Maps have `values`, lists have not.
    inner = value.values() if hasattr(value, "values") else value
    return ((name if free else f"{name}[{index}]", one) for index, one in enumerate(inner))
