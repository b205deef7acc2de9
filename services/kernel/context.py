"""What is known about the call that the current task serves.

Set by the gRPC server for the task of each call. Tasks started from a handler inherit it; work that outlives the call
(a driver, a loop) is started with `context=detached()`.
"""

from __future__ import annotations

import contextvars
import time
from dataclasses import dataclass

import structlog

from services.kernel.errors import unauthenticated
from services.kernel.identity.caller import Caller


@dataclass(slots=True)
class CallState:
    """The call that the current task serves.

    Args:
        method: `/package.Service/Method`.
        deadline: by the monotonic clock in seconds; None without a deadline.
        active: False once the call has ended.
    """

    method: str
    deadline: float | None = None
    active: bool = True
    caller_user_id: str = ""


request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)
service: contextvars.ContextVar[str | None] = contextvars.ContextVar("service", default=None)
call_state: contextvars.ContextVar[CallState | None] = contextvars.ContextVar("call_state", default=None)


def current_request_id() -> str:
    """The id of the request being served; empty outside one."""
    return request_id.get()


def current_caller() -> Caller:
    """The end user of the current call.

    Raises:
        ServiceError: UNAUTHENTICATED, TOKEN_MISSING, when there is none (a public method, a service of its own accord).
    """
    known = caller.get()
    if known is None:
        raise unauthenticated("TOKEN_MISSING", "an access token is needed")
    return known


def current_service() -> str | None:
    """The service that made the current call, None if an end user did."""
    return service.get()


def remaining_seconds() -> float | None:
    """How long the current call may still take; None outside a call, after its end, or without a deadline."""
    state = call_state.get()
    if state is None or not state.active or state.deadline is None:
        return None
    return state.deadline - time.monotonic()


def detached() -> contextvars.Context:
    """Returns an empty context for a task that outlives the call that starts it."""
    return contextvars.Context()


def about(*, request: str = "", **names: str) -> contextvars.Context:
    """As `detached`, with a request id for the calls that the task makes, and what its logs name beside it."""
    made = detached()
    made.run(name_work, request=request, **names)
    return made


def name_work(*, request: str = "", **names: str) -> None:
    """Says what the current task works on from now on: for the calls that it makes, and for its logs."""
    request_id.set(request)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**names, **({"request_id": request} if request else {}))
