"""The words that options take; those of the contract's enums in lower case, with dashes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class OutputFormat(StrEnum):
    """The formats of `--output`."""

    TABLE = "table"
    JSON = "json"


class ModeName(StrEnum):
    """Modes a session can be created in."""

    interactive = "interactive"
    background = "background"


class PermissionModeName(StrEnum):
    """How tool calls are decided that no list names."""

    default = "default"
    accept_edits = "accept-edits"
    plan = "plan"
    bypass_permissions = "bypass-permissions"
    dont_ask = "dont-ask"


class StateName(StrEnum):
    """States of a session."""

    created = "created"
    connecting = "connecting"
    active = "active"
    waiting = "waiting"
    processing = "processing"
    paused = "paused"
    completed = "completed"
    failed = "failed"
    terminated = "terminated"
    archived = "archived"


class RunStateName(StrEnum):
    """States of a run."""

    pending = "pending"
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"
    timed_out = "timed-out"
    skipped = "skipped"


class DeliveryStateName(StrEnum):
    """States of a webhook's delivery."""

    pending = "pending"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


class ToldStateName(StrEnum):
    """Ends of a run that a webhook tells of."""

    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"
    timed_out = "timed-out"


class WhenBusyName(StrEnum):
    """What to do with a message while a turn runs."""

    enqueue = "enqueue"
    reject = "reject"
    interrupt = "interrupt"


class OverlapName(StrEnum):
    """What a fire of a schedule does while a run of an earlier one is open."""

    skip = "skip"
    buffer_one = "buffer-one"
    buffer_all = "buffer-all"
    cancel_other = "cancel-other"
    terminate_other = "terminate-other"
    allow_all = "allow-all"


class ScheduleStateName(StrEnum):
    """States of a schedule."""

    active = "active"
    paused = "paused"
    ended = "ended"


def number_of(kind: Any, word: str) -> Any:
    """Returns a protobuf enum's number for an option's word."""
    return kind.Value(word.upper().replace("-", "_"))
