"""Between ServiceError and google.rpc.Status, both ways; the only place where an error becomes a status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import grpc
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.kernel.errors import KERNEL_DOMAIN, ErrorKind, FieldViolation, ServiceError

REQUEST_ID_KEY: Final = "x-request-id"
_DETAILS_KEY: Final = "grpc-status-details-bin"
# A status travels in trailers. Beyond 8 KiB of metadata a peer may refuse them (grpc: at random up to 16 KiB), and the
# error with them; the message is there twice, once percent-encoded. All in bytes.
_MAX_STATUS: Final = 4096
_MAX_MESSAGE: Final = 384
_MAX_FIELD: Final = 128
_MAX_DESCRIPTION: Final = 160
_MAX_METADATA_VALUE: Final = 256
_INTERNAL_MESSAGE: Final = "internal error; the request id identifies it in the service's log"

CODES: Final[dict[ErrorKind, grpc.StatusCode]] = {kind: grpc.StatusCode[kind.value] for kind in ErrorKind}
_KINDS: Final[dict[grpc.StatusCode, ErrorKind]] = {code: kind for kind, code in CODES.items()}


def internal_error(domain: str) -> ServiceError:
    """What a caller is told about an exception nobody foresaw; the rest is in the log."""
    return ServiceError(ErrorKind.INTERNAL, reason="INTERNAL", domain=domain, message=_INTERNAL_MESSAGE)


def to_status(error: ServiceError, request_id: str) -> status_pb2.Status:
    """Returns the google.rpc.Status with ErrorInfo always, and BadRequest, RetryInfo, RequestInfo where they apply.

    Texts are cut and the last violations and metadata left out where the whole would be too large to arrive.
    """
    text = _INTERNAL_MESSAGE if error.kind is ErrorKind.INTERNAL else _cut(error.message, _MAX_MESSAGE)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain)
    details: list[message.Message] = [info]
    if request_id:
        # The id that an error is about goes first: that of the call is in RequestInfo as well.
        info.metadata["request_id"] = error.metadata.get("request_id", request_id)
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        details.append(retry)
    room = _MAX_STATUS - len(text.encode()) - sum(detail.ByteSize() + 64 for detail in details)
    for key, value in error.metadata.items():
        short = _cut(value, _MAX_METADATA_VALUE)
        room -= len(key.encode()) + len(short.encode()) + 8
        if room < 0:
            break
        info.metadata.setdefault(key, short)
    if error.violations:
        details.append(_bad_request(error.violations, room))
    return status_pb2.Status(code=CODES[error.kind].value[0], message=text, details=_pack(details))


def _bad_request(violations: Sequence[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        part = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _MAX_FIELD),
            description=_cut(violation.description, _MAX_DESCRIPTION),
            reason=violation.reason,
        )
        room -= part.ByteSize() + 8
        # The first is never left out.
        if room < 0 and bad.field_violations:
            break
        bad.field_violations.append(part)
    return bad


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


def _cut(text: str, limit_bytes: int) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode("utf-8")
    return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
