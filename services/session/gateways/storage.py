"""A disk that is full, told as what it is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from services.session.domain.errors import storage_full

_log = structlog.get_logger(__name__)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def told_when_full() -> Iterator[None]:
    """Runs what writes files.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED with STORAGE_FULL, which is logged. Any other error passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _log.error("the storage is full", error=error.strerror)
        raise storage_full() from error
