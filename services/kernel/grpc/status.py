"""The one place where errors become statuses, and statuses errors again (google.rpc.Status, AIP-193)."""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.kernel.errors import KERNEL_DOMAIN, ErrorKind, FieldViolation, ServiceError

DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_LIMIT = 1024


def status_of(error: ServiceError, request_id: str) -> status_pb2.Status:
    """Describes an error for the wire: ErrorInfo and RequestInfo always, the rest where it applies."""
    details: list[any_pb2.Any] = []

    def add(message: object) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)  # type: ignore[arg-type]  # every detail is a message
        details.append(packed)

    metadata = dict(error.metadata)
    if request_id:
        metadata.setdefault("request_id", request_id)
    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain, metadata=metadata))
    if error.violations:
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description, reason=violation.reason
                    )
                    for violation in error.violations
                ]
            )
        )
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, math.ceil(error.retry_after_seconds * 1e9)))
        add(retry)
    if request_id:
        add(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.kind.value), message=error.message[:_MESSAGE_LIMIT], details=details
    )


def grpc_code(error: ServiceError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return grpc.StatusCode[error.kind.value]


def error_from_rpc(error: grpc.aio.AioRpcError) -> ServiceError:
    """Reads the error another service answered with.

    Args:
        error: What the call raised.

    Returns:
        The error with its reason and details; one without details keeps its code and says which.
    """
    code = error.code()
    kind = ErrorKind[code.name] if code.name in ErrorKind.__members__ else ErrorKind.INTERNAL
    if code is grpc.StatusCode.CANCELLED:
        kind = ErrorKind.UNAVAILABLE
    found = ServiceError(
        kind, reason=f"RPC_{code.name}", domain=KERNEL_DOMAIN, message=error.details() or code.name
    )
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            _read_details(found, status_pb2.Status.FromString(value))
    return found


def _read_details(found: ServiceError, status: status_pb2.Status) -> None:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            found.reason, found.domain, found.metadata = info.reason, info.domain, dict(info.metadata)
        elif detail.Unpack(bad):
            found.violations = tuple(
                FieldViolation(violation.field, violation.description, violation.reason)
                for violation in bad.field_violations
            )
        elif detail.Unpack(retry):
            found.retry_after_seconds = retry.retry_delay.ToNanoseconds() / 1e9
