"""Which database errors mean that the database is not there; their text never leaves the process."""

from __future__ import annotations

import re
from typing import Final

from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import exc

from services.kernel.errors import ServiceError, unavailable

# SQLSTATE classes and codes (PostgreSQL, appendix A).
_GONE_CLASSES: Final = ("08", "57P")
_GONE_CODES: Final = frozenset({"53300"})  # too many connections
_BUSY_CODES: Final = frozenset({"55P03", "57014", "40001", "40P01", "53200", "25P03"})
_CLOSED: Final = re.compile(r"connection (is|was) closed|connection has been released")
_RETRY_SECONDS: Final = 1.0


def database_failure(error: BaseException) -> ServiceError | None:
    """Returns the UNAVAILABLE that an error of the driver or the pool stands for; None if it is something else.

    DATABASE_UNAVAILABLE: no connection, or it broke; whether a commit under way took effect is not known.
    DATABASE_BUSY: a lock or a connection was not to be had in time, or two transactions collided; nothing was
    written.
    """
    if isinstance(error, exc.TimeoutError):
        return busy()
    cause = _cause(error)
    if isinstance(cause, PostgresError):
        code = str(getattr(cause, "sqlstate", None) or "")
        if code.startswith(_GONE_CLASSES) or code in _GONE_CODES:
            return _gone()
        if code in _BUSY_CODES:
            return busy()
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return _gone()
    # A refused or timed-out connect reaches us as it is, a connection closed under our feet as the driver's own error.
    if isinstance(cause, OSError) or (
        isinstance(cause, InterfaceError) and _CLOSED.search(str(cause)) is not None
    ):
        return _gone()
    return None


def is_stale(error: BaseException) -> bool:
    """Whether a first statement failed because the pooled connection was dead already."""
    failure = database_failure(error)
    return failure is not None and failure.reason == "DATABASE_UNAVAILABLE"


def _cause(error: BaseException) -> BaseException:
    # SQLAlchemy wraps the adapter's error, which was raised from the driver's.
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def _gone() -> ServiceError:
    return unavailable(
        "DATABASE_UNAVAILABLE", "the database cannot be reached", retry_after_seconds=_RETRY_SECONDS
    )


def busy() -> ServiceError:
    """Says that nothing was written, and that trying again may help."""
    return unavailable("DATABASE_BUSY", "the database is busy", retry_after_seconds=_RETRY_SECONDS)
