"""What breaks an item stream, and what that proves of the attempt."""

from __future__ import annotations

import asyncio
from typing import Any

from services.kernel.errors import ServiceError
from services.session.domain.errors import LeaseLost

GONE = frozenset({"ATTEMPT_UNKNOWN", "INCARNATION_MISMATCH", "ATTEMPT_BARRED"})
"""The executor's word that the attempt does not run."""
NO_ROOM = frozenset({"EXECUTOR_FULL", "DRAINING"})
AHEAD = "OFFSET_GONE"
"""The executor was told that items are in the log which the log does not have: commits were lost, as by a failover or a
restore. The attempt may well run."""


def cause_of(group: ExceptionGroup[Exception], task: asyncio.Task[Any] | None) -> ServiceError:
    """Finds what broke a stream; what is no error of a service is raised on, a lost lease before all else.

    Args:
        group: What a TaskGroup raised.
        task: The task it was in. Where that was cancelled at the same moment, the group of Python 3.12 raises its
            errors alone: the cancellation would be lost, and the driver would go on for ever.
    """
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from group
    lost = group.subgroup(LeaseLost)
    if lost is not None:
        raise LeaseLost("the lease was lost while an attempt was followed") from group
    failures, others = group.split(ServiceError)
    if failures is None or others is not None:
        raise group
    cause: BaseException = failures
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if not isinstance(cause, ServiceError):
        raise group
    return cause
