"""What an update is to change, by its mask."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from services.scheduler.domain.errors import invalid_request


def changes(request: Any, read: Callable[[Any, str], Any], never_empty: Collection[str]) -> dict[str, Any]:
    """Reads the fields that a request's mask names.

    Args:
        request: with an `update_mask`.
        read: reads a field of it as the domain's value.
        never_empty: fields that cannot be without a value.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST.
    """
    values: dict[str, Any] = {}
    for field in request.update_mask.paths:
        if "." in field:
            raise invalid_request("update_mask", f"{field}: names a part; fields are changed as a whole")
        values[field] = read(request, field)
        if field in never_empty and not values[field]:
            raise invalid_request(field, "is named by update_mask and missing")
    return values
