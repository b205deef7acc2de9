"""The one exception that use cases raise, and its kinds. Pure: nothing here knows gRPC.

Every failure that a caller may see has a stable pair `(domain, reason)`: the reason is a name in the service's
`ErrorReason` enum, or one of the kernel's own below under the domain `aiagent`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

KERNEL_DOMAIN: Final = "aiagent"
_NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})


class ErrorKind(StrEnum):
    """What a failure means to a caller; the names are those of the gRPC status codes."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that breaks a rule.

    Args:
        field: path of the field as the contract names it, e.g. `sdk_options.mcp_servers[2].url`.
        description: what is wrong, for a person.
        reason: stable name of the rule in UPPER_SNAKE_CASE, may be empty.
    """

    field: str
    description: str
    reason: str = ""


class ServiceError(Exception):
    """A failure that the caller is told about, as it stands: no driver text, no SQL, no path belongs in it."""

    def __init__(
        self,
        kind: ErrorKind,
        *,
        reason: str,
        domain: str,
        message: str,
        metadata: Mapping[str, str] = _NO_METADATA,
        violations: Sequence[FieldViolation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        """Args:

        kind: the status.
        reason: name in the service's ErrorReason enum.
        domain: `<service>.aiagent`.
        message: one sentence for a person.
        metadata: facts for a program; values are short texts.
        violations: the fields at fault, for INVALID_ARGUMENT.
        retry_after_seconds: when trying again may help.
        """
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.domain = domain
        self.message = message
        self.metadata = metadata
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def __repr__(self) -> str:
        return f"ServiceError({self.kind.value}, {self.domain}/{self.reason}: {self.message})"


def invalid_argument(
    reason: str,
    message: str,
    *,
    domain: str,
    violations: Sequence[FieldViolation] = (),
    metadata: Mapping[str, str] = _NO_METADATA,
) -> ServiceError:
    """INVALID_ARGUMENT: the request is wrong whatever the state of the service."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason=reason,
        domain=domain,
        message=message,
        violations=violations,
        metadata=metadata,
    )


def unauthenticated(reason: str, message: str, *, domain: str = KERNEL_DOMAIN) -> ServiceError:
    """UNAUTHENTICATED: nobody, or nobody that can be believed. Kernel's reasons: TOKEN_MISSING, TOKEN_INVALID,
    TOKEN_EXPIRED."""
    return ServiceError(ErrorKind.UNAUTHENTICATED, reason=reason, domain=domain, message=message)


def permission_denied(
    reason: str, message: str, *, domain: str = KERNEL_DOMAIN, metadata: Mapping[str, str] = _NO_METADATA
) -> ServiceError:
    """PERMISSION_DENIED: known, but not allowed. The kernel's own reason is CALLER_NOT_ALLOWED."""
    return ServiceError(
        ErrorKind.PERMISSION_DENIED, reason=reason, domain=domain, message=message, metadata=metadata
    )


def resource_exhausted(
    reason: str,
    message: str,
    *,
    domain: str,
    retry_after_seconds: float | None = None,
    metadata: Mapping[str, str] = _NO_METADATA,
) -> ServiceError:
    """RESOURCE_EXHAUSTED: too much, or too often; `retry_after_seconds` says when it may work."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason=reason,
        domain=domain,
        message=message,
        retry_after_seconds=retry_after_seconds,
        metadata=metadata,
    )


def unavailable(
    reason: str, message: str, *, domain: str = KERNEL_DOMAIN, retry_after_seconds: float | None = None
) -> ServiceError:
    """UNAVAILABLE: the only kind that a client may retry blindly. Kernel's reasons: DATABASE_UNAVAILABLE,
    DATABASE_BUSY, KEYS_UNAVAILABLE, DRAINING."""
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        reason=reason,
        domain=domain,
        message=message,
        retry_after_seconds=retry_after_seconds,
    )
