"""What can go wrong: errors the server answered with, and errors of the client itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf import message as protobuf_message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class ClientError(Exception):
    """The base of everything this package raises."""


class NotLoggedInError(ClientError):
    """There are no credentials, or the server no longer takes them: log in."""


class CredentialsError(ClientError):
    """The credentials file cannot be read, written or locked."""


class InvalidUrlError(ClientError, ValueError):
    """The server's URL is none that this client understands."""


class InvalidTokenError(ClientError, ValueError):
    """What was given or stored as an access token holds characters that no token has, and no header may carry."""


class InvalidValueError(ClientError, ValueError):
    """What was given as a variable's value cannot be sent; `field` is its path, as in `variables.repository`."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field


class ArchiveError(ClientError):
    """A directory cannot be packed, or an archive cannot be extracted safely."""


class StreamError(ClientError):
    """The server's stream broke its own rules, and resuming did not help."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that broke a rule.

    `field` is its path, as in `sdk_options.max_turns`; `reason` is the rule's stable name, may be empty.
    """

    field: str
    description: str
    reason: str = ""


class ApiError(ClientError):
    """The server refused or failed a call.

    `reason` and `domain` are the stable names of the contract's error_reason.proto; both are empty when no service
    answered (the connection failed). `retry_after` is in seconds. `request_id` finds the call in the server's logs.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self.field_violations = field_violations
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        name = self.reason or self.code.name
        found = [f"{violation.field}: {violation.description}" for violation in self.field_violations]
        # Of most the first is the message.
        return f"{name}: {'; '.join([self.message, *[one for one in found if one != self.message]])}"


class InvalidArgumentError(ApiError):
    """The request is wrong whatever the server's state; `field_violations` says where."""


class UnauthenticatedError(ApiError):
    """The token or the password is missing, wrong or expired."""


class PermissionDeniedError(ApiError):
    """The caller is known and may not do this."""


class NotFoundError(ApiError):
    """There is no such thing, or it is not the caller's."""


class AlreadyExistsError(ApiError):
    """The name is taken."""


class FailedPreconditionError(ApiError):
    """The state of things does not allow this now."""


class AbortedError(ApiError):
    """Someone else changed it first: read it again."""


class ResourceExhaustedError(ApiError):
    """Too much or too often; `retry_after` may say when to try again."""


class UnavailableError(ApiError):
    """The server cannot be reached or cannot answer now. Calls that may be repeated were repeated already."""


class DeadlineExceededError(ApiError):
    """No answer came in time; whether the call took effect is not known."""


class InternalError(ApiError):
    """The server failed; `request_id` finds the cause in its logs."""


_CLASSES: dict[grpc.StatusCode, type[ApiError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_from_rpc(error: grpc.aio.AioRpcError, request_id: str = "") -> ApiError:
    """Returns the typed error of a failed call; `request_id` is what the call was sent with."""
    code = error.code()
    reason = domain = ""
    metadata: dict[str, str] = {}
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None
    status = _status_of(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info):
            reason, domain, metadata = info.reason, info.domain, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = tuple(
                FieldViolation(found.field, found.description, found.reason) for found in bad.field_violations
            )
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Unpack(request):
            request_id = request.request_id
    return _CLASSES.get(code, ApiError)(
        error.details() or code.name,
        code=code,
        reason=reason,
        domain=domain,
        metadata=metadata,
        field_violations=violations,
        retry_after=retry_after,
        request_id=request_id,
    )


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except protobuf_message.DecodeError:
                return None
    return None
