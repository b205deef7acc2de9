"""What every change begins with: whether the caller may, and what was asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from services.kernel.identity import Caller, Role
from services.scheduler.domain.errors import role_not_allowed


def require_writer(caller: Caller) -> None:
    """Refuses callers that may only read.

    Raises:
        ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED.
    """
    if caller.role is Role.VIEWER:
        raise role_not_allowed(caller.role.value.upper())


def canonical(*parts: object) -> bytes:
    """Writes a request in one form, to be hashed for its request id."""
    text = json.dumps(parts, default=_plain, sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
