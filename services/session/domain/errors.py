"""The errors of the session service, one constructor for each reason of `aiagent.session.v1.ErrorReason`."""

from __future__ import annotations

from uuid import UUID

from services.kernel.errors import ErrorKind, FieldViolation, ServiceError
from services.session.domain.states import PermissionRequestState, SessionState, TurnState

DOMAIN = "session.aiagent"


def _error(kind: ErrorKind, reason: str, message: str, **metadata: str) -> ServiceError:
    return ServiceError(kind, reason=reason, domain=DOMAIN, message=message, metadata=metadata)


def invalid_request(field: str, description: str) -> ServiceError:
    """INVALID_ARGUMENT: a rule that the contract cannot state is broken by `field`."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason="INVALID_REQUEST",
        domain=DOMAIN,
        message=f"{field}: {description}",
        violations=(FieldViolation(field=field, description=description, reason="INVALID"),),
    )


def session_not_found(session_id: UUID) -> ServiceError:
    """NOT_FOUND: there is no such session, or it is not the caller's. The two are the same answer."""
    return _error(
        ErrorKind.NOT_FOUND, "SESSION_NOT_FOUND", "the session does not exist", session_id=str(session_id)
    )


def turn_not_found(turn_id: UUID | None) -> ServiceError:
    """NOT_FOUND: the session has no such turn, or no current one."""
    return _error(
        ErrorKind.NOT_FOUND,
        "TURN_NOT_FOUND",
        "the turn does not exist" if turn_id else "no turn is queued, running or waiting",
        turn_id=str(turn_id or ""),
    )


def permission_request_not_found(request_id: UUID) -> ServiceError:
    """NOT_FOUND: the session has no such permission request."""
    return _error(
        ErrorKind.NOT_FOUND,
        "PERMISSION_REQUEST_NOT_FOUND",
        "the permission request does not exist",
        permission_request_id=str(request_id),
    )


def content_not_found(content_id: UUID) -> ServiceError:
    """NOT_FOUND: the session has no such content."""
    return _error(
        ErrorKind.NOT_FOUND, "CONTENT_NOT_FOUND", "the content does not exist", content_id=str(content_id)
    )


def session_state_invalid(state: SessionState) -> ServiceError:
    """FAILED_PRECONDITION: the session takes no messages in this state."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "SESSION_STATE_INVALID",
        f"the session is {state.value} and takes no messages",
        state=state.value,
    )


def session_busy(turn_id: UUID) -> ServiceError:
    """FAILED_PRECONDITION: a turn is open, and the caller asked not to wait behind it."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "SESSION_BUSY",
        "a turn is queued, running or waiting",
        turn_id=str(turn_id),
    )


def turn_queue_full(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: too many messages wait."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="TURN_QUEUE_FULL",
        domain=DOMAIN,
        message=f"{limit} messages wait in this session already",
        metadata={"limit": str(limit)},
        retry_after_seconds=5.0,
    )


def turn_ended(state: TurnState) -> ServiceError:
    """FAILED_PRECONDITION: the turn is over."""
    return _error(
        ErrorKind.FAILED_PRECONDITION, "TURN_ENDED", f"the turn is over: {state.value}", state=state.value
    )


def permission_request_resolved(state: PermissionRequestState) -> ServiceError:
    """FAILED_PRECONDITION: the question has its answer, has expired or fell away."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "PERMISSION_REQUEST_RESOLVED",
        f"the permission request is {state.value}",
        state=state.value,
    )


def archive_invalid(message: str, entry: str = "") -> ServiceError:
    """INVALID_ARGUMENT: the archive is broken, of another kind, or holds what may not be extracted."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason="ARCHIVE_INVALID",
        domain=DOMAIN,
        message=message,
        metadata={"entry": entry},
        violations=(FieldViolation(field="archive", description=message, reason="ARCHIVE_INVALID"),),
    )


def workspace_too_large(limit_bytes: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: the workspace would grow over its limit, given in bytes."""
    return _error(
        ErrorKind.RESOURCE_EXHAUSTED,
        "WORKSPACE_TOO_LARGE",
        f"the workspace may hold {limit_bytes} bytes",
        limit_bytes=str(limit_bytes),
    )


def storage_full() -> ServiceError:
    """RESOURCE_EXHAUSTED: the disk of workspaces or large texts is full, or its quota is."""
    return _error(
        ErrorKind.RESOURCE_EXHAUSTED, "STORAGE_FULL", "the service's storage is full; ask who operates it"
    )


def workspace_busy() -> ServiceError:
    """FAILED_PRECONDITION: a turn or another upload is writing the workspace."""
    return _error(ErrorKind.FAILED_PRECONDITION, "WORKSPACE_BUSY", "the workspace is being written")


def cursor_ahead(head: int) -> ServiceError:
    """INVALID_ARGUMENT: the cursor names an event that does not exist yet."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason="CURSOR_AHEAD",
        domain=DOMAIN,
        message=f"the cursor is ahead of the log, which ends at {head}",
        metadata={"head": str(head)},
        violations=(
            FieldViolation(field="cursor.sequence", description=f"at most {head}", reason="CURSOR_AHEAD"),
        ),
    )


def token_expired() -> ServiceError:
    """UNAUTHENTICATED: the token behind a stream has expired; refresh and resume."""
    return _error(ErrorKind.UNAUTHENTICATED, "TOKEN_EXPIRED", "the access token has expired")


def watcher_too_slow() -> ServiceError:
    """RESOURCE_EXHAUSTED: the watcher did not read, or could not keep up; resume with the cursor."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="WATCHER_TOO_SLOW",
        domain=DOMAIN,
        message="the watcher could not keep up; resume with its cursor",
        retry_after_seconds=0.0,
    )


def too_many_watches(limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED: the user has `limit` streams and waiting calls open on this replica already."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="TOO_MANY_WATCHES",
        domain=DOMAIN,
        message=f"{limit} streams or waiting calls of this user are open already; close one",
        metadata={"limit": str(limit)},
        retry_after_seconds=5.0,
    )


def draining() -> ServiceError:
    """UNAVAILABLE: the server is shutting down; resume with the cursor."""
    return _error(ErrorKind.UNAVAILABLE, "DRAINING", "the server is shutting down; resume with the cursor")


def etag_mismatch() -> ServiceError:
    """ABORTED: the etag sent is not that of the current version."""
    return _error(ErrorKind.ABORTED, "ETAG_MISMATCH", "the session has changed; read it again")


def session_deleted(session_id: UUID) -> ServiceError:
    """NOT_FOUND: the session was deleted while the stream ran."""
    return _error(
        ErrorKind.NOT_FOUND, "SESSION_DELETED", "the session was deleted", session_id=str(session_id)
    )


def transcript_token_invalid() -> ServiceError:
    """PERMISSION_DENIED: the token is not that of the attempt."""
    return _error(
        ErrorKind.PERMISSION_DENIED, "TRANSCRIPT_TOKEN_INVALID", "the token is not that of the attempt"
    )


def attempt_superseded(attempt: int) -> ServiceError:
    """FAILED_PRECONDITION: a later attempt has begun, or this one never did."""
    return _error(
        ErrorKind.FAILED_PRECONDITION,
        "ATTEMPT_SUPERSEDED",
        "another attempt has begun in the session",
        attempt=str(attempt),
    )


def role_not_allowed(role: str) -> ServiceError:
    """PERMISSION_DENIED: viewers read only."""
    return _error(ErrorKind.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", f"the role {role} reads only", role=role)


class LeaseLost(Exception):
    """The driver's lease ended: another holder has a higher epoch, or the session is gone. Stop at once."""


class TurnMoved(Exception):
    """A turn that was read without a lock stands elsewhere under it, as one that its user has ended. Look again."""
