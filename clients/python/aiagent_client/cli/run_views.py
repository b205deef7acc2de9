"""How runs are shown to people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group
from rich.text import Text

from aiagent.events.v1.content_pb2 import Failure
from aiagent.scheduler.v1.run_pb2 import TaskRun, TaskRunAttempt
from aiagent_client.cli.output import facts, local_time, plain, when, word
from aiagent_client.cli.tables import Column, fitted
from aiagent_client.cli.text import count_of, duration, money, one_line, plain_numbers, safe
from aiagent_client.runs import FINAL_RUN_STATES

_WAITS = {
    TaskRun.PENDING: "held back by its schedule",
    TaskRun.QUEUED: "waits for a worker",
}
_STATE_WIDTH = max(len(name) for name, number in TaskRun.State.items() if number)


def rows_of(found: Sequence[TaskRun], width: int) -> Text:
    """Returns runs as a table; what does not fit into the width is left out."""
    of_schedules = any(run.HasField("fire_time") for run in found)
    cells: dict[Column, Callable[[TaskRun], Text | str]] = {
        Column("ID", "id"): lambda run: run.id,
        Column("STATE"): lambda run: word(TaskRun.State, run.state),
        Column("ATTEMPT", right=True, spare=2): lambda run: str(run.attempt),
        Column("COST", right=True): lambda run: money(run.cost_usd),
        Column("CREATED", spare=1): lambda run: when(run.create_time),
        **({Column("FIRE", spare=3): lambda run: local_time(run.fire_time)} if of_schedules else {}),
        Column("TASK", "id", spare=4): lambda run: run.task_id,
    }
    return fitted(list(cells), [[cell(run) for cell in cells.values()] for run in found], width)


def facts_of(run: TaskRun) -> Any:
    """Returns all about one run, and its result."""
    given = plain_numbers(MessageToDict(run.variables))
    rows: list[tuple[str, Text | str]] = [
        ("id", run.id),
        ("task", run.task_id),
        ("schedule", run.schedule_id),
        ("fire", local_time(run.fire_time)),
        ("backfill", run.backfill_id),
        ("retry of", run.retry_of),
        ("state", word(TaskRun.State, run.state)),
        ("skipped for", _skip_reason(run)),
        ("cancel", "asked for" if run.cancel_requested and not run.HasField("end_time") else ""),
        *[
            ("variable", plain(f"{name} = {json.dumps(value, ensure_ascii=False)}"))
            for name, value in given.items()
        ],
        ("session", run.session_id),
        *[("attempt", _attempt(attempt)) for attempt in run.attempts],
        ("failure", plain(f"{run.failure.reason}: {run.failure.message}") if run.failure.reason else ""),
        ("cost", money(run.cost_usd)),
        ("created", local_time(run.create_time)),
        ("started", local_time(run.start_time)),
        ("ended", local_time(run.end_time)),
    ]
    shown = facts(rows)
    answer = answer_of(run)
    return Group(shown, Text(""), Text(answer)) if answer else shown


def answer_of(run: TaskRun) -> str:
    """Returns what a run's agent answered, made safe."""
    return safe(run.structured_output_json or run.result)


def cancelled(run: TaskRun) -> str:
    """Returns what became of a wish to cancel."""
    return f"cancelled {run.id}" if run.state == TaskRun.CANCELLED else f"{run.id} is being cancelled"


def story_of(run: TaskRun) -> Iterator[tuple[str, Text]]:
    """Yields what has happened to a run so far, a line each, under a name that the same line has ever after.

    A run has all of its attempts: whoever looks seldom misses no line.
    """
    for attempt in run.attempts:
        number = attempt.attempt
        yield f"{number}", _line(attempt.start_time, TaskRun.RUNNING, f"attempt {number}")
        if attempt.session_id:
            yield f"{number} in", _more(f"session {attempt.session_id}")
        last = attempt == run.attempts[-1] and run.state in FINAL_RUN_STATES
        if attempt.state in FINAL_RUN_STATES and not last:
            yield f"{number} over", _line(attempt.end_time, attempt.state, _failed(attempt.failure))
    if run.state in FINAL_RUN_STATES:
        yield "over", _line(run.end_time, run.state, _end(run))
    elif run.cancel_requested:
        yield "cancel", _more("somebody has asked for its end")
    elif run.state in _WAITS:
        waits = f"waits for attempt {run.attempt + 1}" if run.attempt else _WAITS[run.state]
        yield f"{run.state} {run.attempt}", _line(None, run.state, waits)


def _line(time: Timestamp | None, state: int, text: str) -> Text:
    moment = time.ToDatetime(UTC) if time is not None and time.seconds else datetime.now(UTC)
    shown = word(TaskRun.State, state)
    shown.pad_right(_STATE_WIDTH - len(shown))
    return Text.assemble((f"{moment.astimezone():%H:%M:%S}  ", "dim"), shown, f"  {text}".rstrip())


def _more(text: str) -> Text:
    """A line that belongs to the one before: when it came to be is not known."""
    return Text(" " * (len("hh:mm:ss  ") + _STATE_WIDTH + 2) + text)


def _end(run: TaskRun) -> str:
    parts = [_failed(run.failure), _skip_reason(run)]
    if run.HasField("start_time"):
        took = run.end_time.ToMilliseconds() - run.start_time.ToMilliseconds()
        parts.append(f"after {duration(max(0, took))}")
    if run.attempt > 1:
        parts.append(count_of(run.attempt, "attempt"))
    if run.cost_usd:
        parts.append(money(run.cost_usd))
    return ", ".join(part for part in parts if part)


def _failed(failure: Failure) -> str:
    return one_line(f"{failure.reason}: {failure.message}", 300) if failure.reason else ""


def _skip_reason(run: TaskRun) -> str:
    return word(TaskRun.SkipReason, run.skip_reason).plain if run.skip_reason else ""


def _attempt(attempt: TaskRunAttempt) -> Text:
    return Text.assemble(
        f"{attempt.attempt}  ",
        word(TaskRun.State, attempt.state),
        f"  {safe(attempt.failure.reason)}".rstrip(),
    )
