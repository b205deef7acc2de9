"""The errors of the auth service, one constructor for each reason of `aiagent.auth.v1.ErrorReason`.

INVALID_REQUEST and REQUEST_ID_REUSED are raised by the kernel under this service's domain.
"""

from __future__ import annotations

from services.kernel.errors import (
    ErrorKind,
    FieldViolation,
    ServiceError,
    resource_exhausted,
    unauthenticated,
)

DOMAIN = "auth.aiagent"


def password_too_long() -> ServiceError:
    """INVALID_ARGUMENT: bcrypt would silently ignore what lies beyond its 72 bytes."""
    description = "must be at most 72 bytes of UTF-8"
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        reason="INVALID_REQUEST",
        domain=DOMAIN,
        message=f"password: {description}",
        violations=(FieldViolation("password", description, "STRING_MAX_BYTES"),),
    )


def email_taken() -> ServiceError:
    """ALREADY_EXISTS: another account has this e-mail address, in whatever case."""
    return ServiceError(
        ErrorKind.ALREADY_EXISTS,
        reason="EMAIL_TAKEN",
        domain=DOMAIN,
        message="the e-mail address belongs to an account already",
    )


def username_taken() -> ServiceError:
    """ALREADY_EXISTS: another account has this user name, in whatever case."""
    return ServiceError(
        ErrorKind.ALREADY_EXISTS,
        reason="USERNAME_TAKEN",
        domain=DOMAIN,
        message="the user name belongs to an account already",
    )


def credentials_invalid() -> ServiceError:
    """UNAUTHENTICATED: no account has this name and password; which of the two is wrong is not told."""
    return unauthenticated("CREDENTIALS_INVALID", "no account has this name and this password", domain=DOMAIN)


def account_inactive() -> ServiceError:
    """UNAUTHENTICATED: the account was deactivated; told only to who knows its password or holds its token."""
    return unauthenticated("ACCOUNT_INACTIVE", "the account is not active", domain=DOMAIN)


def refresh_token_invalid() -> ServiceError:
    """UNAUTHENTICATED: the refresh token is unknown, expired or logged out."""
    return unauthenticated("REFRESH_TOKEN_INVALID", "the refresh token is not valid", domain=DOMAIN)


def refresh_token_reused() -> ServiceError:
    """UNAUTHENTICATED: the refresh token had been used; its family is revoked now."""
    return unauthenticated(
        "REFRESH_TOKEN_REUSED",
        "the refresh token was used before; every token of its family is revoked",
        domain=DOMAIN,
    )


def login_throttled(retry_after_seconds: float) -> ServiceError:
    """RESOURCE_EXHAUSTED: too many failed logins for this account or from this address."""
    return resource_exhausted(
        "LOGIN_THROTTLED",
        "too many failed logins; try again later",
        domain=DOMAIN,
        retry_after_seconds=retry_after_seconds,
    )


def overloaded(retry_after_seconds: float) -> ServiceError:
    """UNAVAILABLE: more passwords wait to be hashed than can be in reasonable time."""
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        reason="OVERLOADED",
        domain=DOMAIN,
        message="too many passwords wait to be checked; try again later",
        retry_after_seconds=retry_after_seconds,
    )
