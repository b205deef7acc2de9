"""What a webhook says of a run that has ended: the body of a message, `type`, `timestamp` and `data`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from services.scheduler.domain.runs import Run

RESULT_BYTES: Final = 64 * 1024
"""Of an answer, and of structured output, in a message."""


def event_type(run: Run) -> str:
    """What happened: `task_run.succeeded`."""
    return f"task_run.{run.state.value.lower()}"


def message_id(run: Run) -> str:
    """The header `webhook-id`: a run ends once, so its own id names the event."""
    return f"msg_{run.id.hex}"


def payload(run: Run) -> bytes:
    """Writes the body of a message about a run that is over: JSON in the contract's form, without what may be large.

    The variables and the attempts are left out; a result beyond `RESULT_BYTES` is cut, structured output beyond it left
    out, and the message says so.

    Raises:
        ValueError: the run is not over.
    """
    if run.end_time is None:
        raise ValueError("a run that is not over")
    result, cut = _cut(run.result)
    omitted = len(run.structured_output_json.encode()) > RESULT_BYTES
    task_run: dict[str, Any] = {
        "id": str(run.id),
        "task_id": str(run.task_id),
        "user_id": str(run.user_id),
        "organization_id": str(run.organization_id),
        "schedule_id": _text(run.schedule_id),
        "backfill_id": _text(run.backfill_id),
        "retry_of": _text(run.retry_of),
        "due_time": _time(run.due_time),
        "priority": run.content.priority,
        "cancel_requested": run.cancel_requested,
        "state": run.state.value,
        "attempt": run.attempt,
        "session_id": _text(run.session_id),
        "result": result,
        "structured_output_json": "" if omitted else run.structured_output_json,
        # Whole numbers of 64 bits are texts in the JSON of Protocol Buffers.
        "usage": {
            "input_tokens": str(run.usage.input_tokens),
            "output_tokens": str(run.usage.output_tokens),
            "cache_read_tokens": str(run.usage.cache_read_tokens),
            "cache_write_tokens": str(run.usage.cache_write_tokens),
        },
        "cost_usd": run.cost_usd,
        "create_time": _time(run.create_time),
        "end_time": _time(run.end_time),
    }
    if run.failure is not None:
        task_run["failure"] = {"reason": run.failure.reason, "message": run.failure.message}
    for name, moment in (("fire_time", run.fire_time), ("start_time", run.start_time)):
        if moment is not None:
            task_run[name] = _time(moment)
    message = {
        "type": event_type(run),
        "timestamp": _time(run.end_time),
        "data": {"task_run": task_run, "result_truncated": cut, "structured_output_omitted": omitted},
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def _cut(text: str) -> tuple[str, bool]:
    raw = text.encode()
    if len(raw) <= RESULT_BYTES:
        return text, False
    return raw[:RESULT_BYTES].decode(errors="ignore"), True


def _text(value: UUID | None) -> str:
    return str(value) if value is not None else ""


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
