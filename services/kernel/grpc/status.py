"""Between ServiceError and google.rpc.Status, both ways; the only place where an error becomes a status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.kernel.errors import KERNEL_DOMAIN, ErrorKind, FieldViolation, ServiceError

REQUEST_ID_KEY: Final = "x-request-id"
_DETAILS_KEY: Final = "grpc-status-details-bin"
# A status travels in trailers, which peers limit to 8 KiB as a rule.
_MAX_MESSAGE: Final = 512
_MAX_VIOLATIONS: Final = 16
_MAX_FIELD: Final = 128
_MAX_DESCRIPTION: Final = 160
_MAX_METADATA: Final = 16
_MAX_METADATA_VALUE: Final = 256
_INTERNAL_MESSAGE: Final = "internal error; the request id identifies it in the service's log"

CODES: Final[dict[ErrorKind, grpc.StatusCode]] = {kind: grpc.StatusCode[kind.value] for kind in ErrorKind}
_KINDS: Final[dict[grpc.StatusCode, ErrorKind]] = {code: kind for kind, code in CODES.items()}


def internal_error(domain: str) -> ServiceError:
    """What a caller is told about an exception nobody foresaw; the rest is in the log."""
    return ServiceError(ErrorKind.INTERNAL, reason="INTERNAL", domain=domain, message=_INTERNAL_MESSAGE)


def to_status(error: ServiceError, request_id: str) -> status_pb2.Status:
    """Returns the google.rpc.Status with ErrorInfo always, and BadRequest, RetryInfo, RequestInfo where they apply."""
    text = _INTERNAL_MESSAGE if error.kind is ErrorKind.INTERNAL else _cut(error.message, _MAX_MESSAGE)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain)
    for key, value in list(error.metadata.items())[:_MAX_METADATA]:
        info.metadata[key] = _cut(value, _MAX_METADATA_VALUE)
    details: list[message.Message] = [info]
    if request_id:
        if "request_id" not in error.metadata:
            info.metadata["request_id"] = request_id
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=_cut(violation.field, _MAX_FIELD),
                        description=_cut(violation.description, _MAX_DESCRIPTION),
                        reason=violation.reason,
                    )
                    for violation in error.violations[:_MAX_VIOLATIONS]
                ]
            )
        )
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        details.append(retry)
    return status_pb2.Status(code=CODES[error.kind].value[0], message=text, details=_pack(details))


def error_from_rpc(error: grpc.aio.AioRpcError) -> ServiceError:
    """Reads the error of a call to another service.

    Without ErrorInfo (the connection failed, a proxy answered) the reason is `RPC_<CODE>`, the domain `aiagent`.
    """
    kind = _KINDS.get(error.code(), ErrorKind.INTERNAL)
    status = _status_of(error)
    text = (error.details() or "") if status is not None else f"the call ended with {error.code().name}"
    found = ServiceError(kind, reason=f"RPC_{error.code().name}", domain=KERNEL_DOMAIN, message=text)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            found.reason, found.domain = info.reason, info.domain
            found.metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            found.violations = tuple(
                FieldViolation(violation.field, violation.description, violation.reason)
                for violation in bad.field_violations
            )
        elif detail.Unpack(retry):
            found.retry_after_seconds = retry.retry_delay.ToMilliseconds() / 1000
    return found


def abortable(status: status_pb2.Status) -> grpc.Status:
    """The form that `context.abort_with_status` takes."""
    converted: grpc.Status = rpc_status.to_status(status)  # type: ignore[no-untyped-call]
    return converted


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except message.DecodeError:
                return None
    return None


def _pack(details: Iterable[message.Message]) -> list[any_pb2.Any]:
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return packed


def _cut(text: str, limit: int) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
