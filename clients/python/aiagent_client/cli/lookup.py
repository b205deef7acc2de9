"""Finding what a person named, as a session, a task, a run or a question: by id, part of an id, or name."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent.scheduler.v1.schedule_pb2 import Schedule
from aiagent.scheduler.v1.task_pb2 import Task
from aiagent.scheduler.v1.webhook_pb2 import WebhookDelivery
from aiagent.session.v1.session_pb2 import PermissionRequest, Session
from aiagent_client.cli.failures import FailedError, UsageError
from aiagent_client.cli.output import local_time, word
from aiagent_client.cli.text import one_line
from aiagent_client.client import Client

_PART: Final = re.compile(r"[0-9a-fA-F-]{4,35}")
# How many of a kind, the newest first, are looked through for a part of an id or a name.
_SEARCHED: Final = 5_000
# No name is longer.
_MAX_NAME: Final = 200


def is_id(text: str) -> bool:
    """Returns whether the text is a whole id."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


async def session_id(client: Client, text: str) -> str:
    """Returns the id of the session that is meant.

    Raises FailedError when there is none, UsageError when there are several.
    """

    def shown(session: Session) -> str:
        state = word(Session.State, session.state).plain
        return f"{one_line(session.name, 40)}  {state}, created {local_time(session.create_time)}".strip()

    there = client.sessions.list(name_contains=_name(text), page_size=1000)
    return await _find("session", text, there, shown)


async def task_id(client: Client, text: str) -> str:
    """Returns the id of the task that is meant. Raises as `session_id`."""

    def shown(task: Task) -> str:
        return f"{one_line(task.name, 40)}  created {local_time(task.create_time)}"

    return await _find("task", text, client.tasks.list(name_contains=_name(text), page_size=1000), shown)


async def schedule_id(client: Client, text: str) -> str:
    """Returns the id of the schedule that is meant. Raises as `session_id`."""

    def shown(schedule: Schedule) -> str:
        state = word(Schedule.State, schedule.state).plain
        return f"{one_line(schedule.name, 40)}  {state}, created {local_time(schedule.create_time)}".strip()

    return await _find("schedule", text, client.schedules.list(page_size=1000), shown)


async def run_id(client: Client, text: str) -> str:
    """Returns the id of the run that is meant; runs have no names. Raises as `session_id`."""

    def shown(run: TaskRun) -> str:
        return f"{word(TaskRun.State, run.state).plain}, created {local_time(run.create_time)}"

    return await _find("run", text, client.runs.list(page_size=1000), shown)


def backfill_id(text: str) -> str:
    """Returns the id of the backfill that is meant; no list has them all, so it is whole. Raises UsageError."""
    text = text.strip()
    if not is_id(text):
        raise UsageError(f"a backfill is named by its whole id, not {one_line(text, 60)!r}")
    return text.lower()


async def delivery_id(client: Client, text: str) -> str:
    """Returns the id of the delivery that is meant; deliveries have no names. Raises as `session_id`."""

    def shown(delivery: WebhookDelivery) -> str:
        state = word(WebhookDelivery.State, delivery.state).plain
        return f"{state}, created {local_time(delivery.create_time)}"

    return await _find("delivery", text, client.webhooks.list(page_size=1000), shown)


async def _find[Kind: (Session, Task, Schedule, TaskRun, WebhookDelivery)](
    noun: str, text: str, there: AsyncIterator[Kind], show: Callable[[Kind], str]
) -> str:
    text = text.strip()
    if is_id(text):
        return text.lower()
    if not text:
        raise UsageError(f"name a {noun}")
    what = f"{noun} {text!r}"
    found: dict[str, str] = {}
    seen = 0
    async for one in there:
        if seen >= _SEARCHED:
            return _only_for_certain(found, what)
        if _matches(one.id, text) or getattr(one, "name", None) == text:
            found[one.id] = show(one)
        seen += 1
    return _only(found, what)


async def pending_request(client: Client, session: str, text: str) -> PermissionRequest:
    """Returns the open question that is meant; the only one of the session if nothing was named.

    Raises FailedError when there is none, UsageError when there are several.
    """
    requests = {
        request.id: request
        async for request in client.permissions.list(session, states=[PermissionRequest.PENDING])
    }
    matching = {
        key: request.tool_use.tool_name
        for key, request in requests.items()
        if not text or key == text.lower() or _matches(key, text)
    }
    return requests[_only(matching, f"open question {text!r}" if text else "open question")]


def _name(text: str) -> str:
    """Returns what the names of those looked through have to contain; nothing if it may be a part of an id."""
    text = text.strip()
    return "" if is_id(text) or _PART.fullmatch(text) else text[:_MAX_NAME]


def _matches(whole: str, part: str) -> bool:
    return bool(_PART.fullmatch(part)) and (whole.startswith(part.lower()) or whole.endswith(part.lower()))


def _only_for_certain(found: dict[str, str], what: str) -> str:
    """Returns nothing: older ones were not looked through, and may match as well. Raises as `_only`."""
    newest = f"the newest {_SEARCHED:,}"
    if not found:
        raise FailedError(
            f"{what} is not among {newest}, and no others are looked through: give the whole id"
        )
    if len(found) == 1:
        (key,) = found
        raise UsageError(
            f"{what} is {key} among {newest}, but no others are looked through: give the whole id"
        )
    return _only(found, what)


def _only(found: dict[str, str], what: str) -> str:
    if not found:
        raise FailedError(f"there is no {what}")
    if len(found) > 1:
        shown = "\n".join(f"  {key}  {name}".rstrip() for key, name in list(found.items())[:10])
        raise UsageError(f"{len(found)} match {what}; name one of them:\n{shown}")
    return next(iter(found))
