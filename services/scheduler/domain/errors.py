"""The errors of the scheduler, one constructor for each reason of `aiagent.scheduler.v1.ErrorReason`."""

from __future__ import annotations

from uuid import UUID

from services.kernel.errors import ErrorKind, FieldViolation, ServiceError, resource_exhausted
from services.scheduler.domain.violations import DOMAIN, refuse

__all__ = ["DOMAIN"]


def _error(kind: ErrorKind, reason: str, message: str, **metadata: str) -> ServiceError:
    return ServiceError(kind, reason=reason, domain=DOMAIN, message=message, metadata=metadata)


def invalid_request(field: str, description: str) -> ServiceError:
    """INVALID_ARGUMENT: a rule that the contract cannot state is broken by `field`."""
    return refuse((FieldViolation(field=field, description=description, reason="INVALID"),))


def task_not_found(task_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such task, or it is not the caller's. The two are the same answer."""
    return _error(ErrorKind.NOT_FOUND, "TASK_NOT_FOUND", "the task does not exist", task_id=str(task_id))


def schedule_not_found(schedule_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such schedule, or it is not the caller's. The two are the same answer."""
    return _error(
        ErrorKind.NOT_FOUND,
        "SCHEDULE_NOT_FOUND",
        "the schedule does not exist",
        schedule_id=str(schedule_id),
    )


def webhook_delivery_not_found(delivery_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such delivery, or it is not the caller's. The two are the same answer."""
    return _error(
        ErrorKind.NOT_FOUND,
        "WEBHOOK_DELIVERY_NOT_FOUND",
        "the delivery does not exist",
        webhook_delivery_id=str(delivery_id),
    )


def webhook_not_set(task_id: UUID) -> ServiceError:
    """FAILED_PRECONDITION: the task tells nobody."""
    return _error(
        ErrorKind.FAILED_PRECONDITION, "WEBHOOK_NOT_SET", "the task has no webhook", task_id=str(task_id)
    )


def secret_unreadable(task_id: UUID) -> ServiceError:
    """FAILED_PRECONDITION: the secret of the task's webhook was sealed with another key."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "SECRET_UNREADABLE",
        "the secret cannot be read any more; rotate it",
        task_id=str(task_id),
    )


def etag_mismatch(what: str) -> ServiceError:
    """ABORTED: the etag sent is not that of the current version of `what`, a word."""
    return _error(ErrorKind.ABORTED, "ETAG_MISMATCH", f"the {what} has changed; read it again")


def role_not_allowed(role: str) -> ServiceError:
    """PERMISSION_DENIED: viewers read only."""
    return _error(ErrorKind.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", f"the role {role} reads only", role=role)


def run_not_found(run_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such run, or it is not the caller's. The two are the same answer."""
    return _error(
        ErrorKind.NOT_FOUND, "TASK_RUN_NOT_FOUND", "the run does not exist", task_run_id=str(run_id)
    )


def run_ended(state: str) -> ServiceError:
    """FAILED_PRECONDITION: the run is over."""
    return _error(ErrorKind.FAILED_PRECONDITION, "TASK_RUN_ENDED", f"the run is {state}", state=state)


def run_not_retryable(state: str, message: str) -> ServiceError:
    """FAILED_PRECONDITION: there is nothing to do again."""
    return _error(ErrorKind.FAILED_PRECONDITION, "TASK_RUN_NOT_RETRYABLE", message, state=state)


def backfill_not_found(backfill_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such backfill, or it is not the caller's. The two are the same answer."""
    return _error(
        ErrorKind.NOT_FOUND,
        "BACKFILL_NOT_FOUND",
        "the backfill does not exist",
        backfill_id=str(backfill_id),
    )


def cursor_ahead(head: int) -> ServiceError:
    """INVALID_ARGUMENT: the cursor names a change that has not happened yet."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason="CURSOR_AHEAD",
        domain=DOMAIN,
        message=f"the cursor is ahead of the run's last change, which is {head}",
        metadata={"head": str(head)},
        violations=(FieldViolation(field="cursor", description=f"at most {head}", reason="CURSOR_AHEAD"),),
    )


def token_expired() -> ServiceError:
    """UNAUTHENTICATED: the token behind a stream has expired; refresh and resume."""
    return _error(ErrorKind.UNAUTHENTICATED, "TOKEN_EXPIRED", "the access token has expired")


def draining() -> ServiceError:
    """UNAVAILABLE: resume with the cursor."""
    return _error(
        ErrorKind.UNAVAILABLE, "DRAINING", "the stream is ended by the server; resume with the cursor"
    )


def too_many_watches(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: the user has `limit` streams open on this replica already."""
    return resource_exhausted(
        "TOO_MANY_WATCHES",
        f"{limit} streams of this user are open already; close one",
        domain=DOMAIN,
        metadata={"limit": str(limit)},
        retry_after_seconds=5.0,
    )


def too_many_backfills(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: as many of the owner's backfills are at work as one may have."""
    return _error(
        ErrorKind.RESOURCE_EXHAUSTED,
        "TOO_MANY_BACKFILLS",
        f"{limit} backfills are at work already; wait for one, or cancel one",
        limit=str(limit),
    )


def too_many_schedules(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: the owner has as many schedules as one may have."""
    return _error(
        ErrorKind.RESOURCE_EXHAUSTED,
        "TOO_MANY_SCHEDULES",
        f"there are {limit} schedules already, and no more may be",
        limit=str(limit),
    )
