"""The errors of the executor, one constructor for each reason of `aiagent.executor.v1.ErrorReason`."""

from __future__ import annotations

from services.kernel.errors import ErrorKind, ServiceError

DOMAIN = "executor.aiagent"


def _error(kind: ErrorKind, reason: str, message: str, **metadata: str) -> ServiceError:
    return ServiceError(kind, reason=reason, domain=DOMAIN, message=message, metadata=metadata)


def lease_epoch_stale(sent: int, seen: int) -> ServiceError:
    """FAILED_PRECONDITION: a driver with a higher epoch has called for this session."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "LEASE_EPOCH_STALE",
        "another driver has taken the session",
        sent=str(sent),
        seen=str(seen),
    )


def incarnation_mismatch() -> ServiceError:
    """FAILED_PRECONDITION: the call was meant for an earlier process."""
    return _error(ErrorKind.FAILED_PRECONDITION, "INCARNATION_MISMATCH", "the executor has restarted since")


def attempt_unknown(attempt: int) -> ServiceError:
    """NOT_FOUND: the attempt does not run here, and never will."""
    return _error(
        ErrorKind.NOT_FOUND, "ATTEMPT_UNKNOWN", "the attempt is not known here", attempt=str(attempt)
    )


def attempt_barred() -> ServiceError:
    """FAILED_PRECONDITION: the attempt was barred, or has run already."""
    return _error(
        ErrorKind.FAILED_PRECONDITION, "ATTEMPT_BARRED", "the attempt was barred or has run already"
    )


def executor_full(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: every place for a live agent is taken by one that works."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="EXECUTOR_FULL",
        domain=DOMAIN,
        message=f"all {limit} agents are at work",
        metadata={"max_live_clients": str(limit)},
        retry_after_seconds=1.0,
    )


def background_full(limit: int, most: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: `most` of the `limit` places are taken by background turns, which may have no more."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="EXECUTOR_FULL",
        domain=DOMAIN,
        message=f"{most} background turns are at work; the other places are kept for interactive ones",
        metadata={"max_live_clients": str(limit), "max_background_clients": str(most)},
        retry_after_seconds=1.0,
    )


def draining() -> ServiceError:
    """UNAVAILABLE: the executor is shutting down."""
    return _error(ErrorKind.UNAVAILABLE, "DRAINING", "the executor is shutting down")


def tool_use_not_waiting(tool_use_id: str) -> ServiceError:
    """NOT_FOUND: no call with this id waits for a decision."""
    return _error(
        ErrorKind.NOT_FOUND,
        "TOOL_USE_NOT_WAITING",
        "no such call waits for a decision",
        tool_use_id=tool_use_id,
    )


def offset_gone(first: int) -> ServiceError:
    """FAILED_PRECONDITION: the items after this offset were acknowledged before, and are gone."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "OFFSET_GONE",
        "the items were acknowledged before",
        first=str(first),
    )
