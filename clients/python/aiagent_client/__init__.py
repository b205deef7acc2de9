"""The Python client of AI-Agent-API.

```
async with Client("http://127.0.0.1:8080", email="ada@example.org", password="…") as client:
    session = await client.sessions.create(name="Fix the tests")
    await client.workspaces.upload_directory(session.id, Path("my-project"))
    turn = await client.sessions.send(session.id, "Run the tests and fix what fails.")
    async for item in client.sessions.watch(session.id, until_idle=True):
        if isinstance(item, TextDelta):
            print(item.text, end="")
```

Messages are those of the contract, `aiagent.session.v1` and the others; the names used most are exported here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiagent.auth.v1.user_pb2 import User
    from aiagent.events.v1.session_event_pb2 import SessionEvent
    from aiagent.scheduler.v1.run_pb2 import TaskRun, TaskRunAttempt
    from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleBackfill, ScheduleFire, ScheduleSpec
    from aiagent.scheduler.v1.task_pb2 import RetryPolicy, Task, TaskVariable
    from aiagent.scheduler.v1.webhook_pb2 import Webhook, WebhookAttempt, WebhookDelivery, WebhookSecret
    from aiagent.session.v1.agent_options_pb2 import AgentOptions
    from aiagent.session.v1.session_pb2 import Message, PermissionRequest, Session, ToolCall, Turn
    from aiagent.session.v1.session_service_pb2 import TextDelta, WatchCursor, WhenBusy
    from aiagent_client.client import Client
    from aiagent_client.connection import DEFAULT_URL
    from aiagent_client.credentials import Credentials, CredentialsFile, CredentialsStore, MemoryCredentials
    from aiagent_client.errors import (
        AbortedError,
        AlreadyExistsError,
        ApiError,
        ArchiveError,
        ClientError,
        CredentialsError,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        InternalError,
        InvalidArgumentError,
        InvalidTokenError,
        InvalidUrlError,
        InvalidValueError,
        NotFoundError,
        NotLoggedInError,
        PermissionDeniedError,
        ResourceExhaustedError,
        StreamError,
        UnauthenticatedError,
        UnavailableError,
    )
    from aiagent_client.runs import FINAL_RUN_STATES, RunWatch
    from aiagent_client.sessions import FINAL_STATES
    from aiagent_client.watching import Watch, WatchedItem

    __version__: str

__all__ = [
    "DEFAULT_URL",
    "FINAL_RUN_STATES",
    "FINAL_STATES",
    "AbortedError",
    "AgentOptions",
    "AlreadyExistsError",
    "ApiError",
    "ArchiveError",
    "Client",
    "ClientError",
    "Credentials",
    "CredentialsError",
    "CredentialsFile",
    "CredentialsStore",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "InvalidTokenError",
    "InvalidUrlError",
    "InvalidValueError",
    "MemoryCredentials",
    "Message",
    "NotFoundError",
    "NotLoggedInError",
    "PermissionDeniedError",
    "PermissionRequest",
    "ResourceExhaustedError",
    "RetryPolicy",
    "RunWatch",
    "Schedule",
    "ScheduleBackfill",
    "ScheduleFire",
    "ScheduleSpec",
    "Session",
    "SessionEvent",
    "StreamError",
    "Task",
    "TaskRun",
    "TaskRunAttempt",
    "TaskVariable",
    "TextDelta",
    "ToolCall",
    "Turn",
    "UnauthenticatedError",
    "UnavailableError",
    "User",
    "Watch",
    "WatchCursor",
    "WatchedItem",
    "Webhook",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookSecret",
    "WhenBusy",
    "__version__",
]

# gRPC and the contract's messages take half a second to import: with the first name that needs them.
_HOMES = {
    "aiagent.auth.v1.user_pb2": ("User",),
    "aiagent.events.v1.session_event_pb2": ("SessionEvent",),
    "aiagent.scheduler.v1.run_pb2": (
        "TaskRun",
        "TaskRunAttempt",
    ),
    "aiagent.scheduler.v1.schedule_pb2": (
        "Schedule",
        "ScheduleBackfill",
        "ScheduleFire",
        "ScheduleSpec",
    ),
    "aiagent.scheduler.v1.task_pb2": (
        "RetryPolicy",
        "Task",
        "TaskVariable",
    ),
    "aiagent.scheduler.v1.webhook_pb2": (
        "Webhook",
        "WebhookAttempt",
        "WebhookDelivery",
        "WebhookSecret",
    ),
    "aiagent.session.v1.agent_options_pb2": ("AgentOptions",),
    "aiagent.session.v1.session_pb2": (
        "Message",
        "PermissionRequest",
        "Session",
        "ToolCall",
        "Turn",
    ),
    "aiagent.session.v1.session_service_pb2": (
        "TextDelta",
        "WatchCursor",
        "WhenBusy",
    ),
    "aiagent_client.client": ("Client",),
    "aiagent_client.connection": ("DEFAULT_URL",),
    "aiagent_client.credentials": (
        "Credentials",
        "CredentialsFile",
        "CredentialsStore",
        "MemoryCredentials",
    ),
    "aiagent_client.errors": (
        "AbortedError",
        "AlreadyExistsError",
        "ApiError",
        "ArchiveError",
        "ClientError",
        "CredentialsError",
        "DeadlineExceededError",
        "FailedPreconditionError",
        "FieldViolation",
        "InternalError",
        "InvalidArgumentError",
        "InvalidTokenError",
        "InvalidUrlError",
        "InvalidValueError",
        "NotFoundError",
        "NotLoggedInError",
        "PermissionDeniedError",
        "ResourceExhaustedError",
        "StreamError",
        "UnauthenticatedError",
        "UnavailableError",
    ),
    "aiagent_client.runs": (
        "FINAL_RUN_STATES",
        "RunWatch",
    ),
    "aiagent_client.sessions": ("FINAL_STATES",),
    "aiagent_client.watching": (
        "Watch",
        "WatchedItem",
    ),
}


def __getattr__(name: str) -> Any:
    """Imports an exported name when it is first used (PEP 562)."""
    if name == "__version__":
        return import_module("aiagent_client.connection").package_version()
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All that is exported."""
    return sorted(__all__)
