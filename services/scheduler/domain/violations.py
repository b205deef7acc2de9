"""How the domain refuses what a caller asks for: every field at fault is named, not the first alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.kernel.errors import FieldViolation, ServiceError, invalid_argument

DOMAIN: Final = "scheduler.aiagent"


def refuse(violations: Sequence[FieldViolation]) -> ServiceError:
    """INVALID_ARGUMENT with INVALID_REQUEST, for rules that the contract cannot state.

    Args:
        violations: what is wrong, at least one.
    """
    return invalid_argument(
        "INVALID_REQUEST",
        "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:5]),
        domain=DOMAIN,
        violations=violations,
    )
