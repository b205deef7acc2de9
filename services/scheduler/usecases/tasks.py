"""Tasks: create, read, change, delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.scheduler.domain.entities import Task, TaskContent, TaskVariable
from services.scheduler.domain.errors import etag_mismatch, invalid_request
from services.scheduler.domain.templates import Renderer, check_template
from services.scheduler.domain.values import find_fault
from services.scheduler.usecases.access import canonical, require_writer
from services.scheduler.usecases.ports import SchedulerStore, TaskFilter
from services.scheduler.usecases.webhooks import WebhookKeeper


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """What to change of a task: new values by their names in `TaskContent`."""

    task_id: UUID
    values: Mapping[str, Any]
    etag: str
    request_id: str


_Template = tuple[str, tuple[TaskVariable, ...]]


class _Unjudged(Exception):
    """A change comes to a template that nobody has read yet; nothing was changed."""

    def __init__(self, template: _Template) -> None:
        super().__init__()
        self.template = template


class Tasks:
    """The use cases."""

    def __init__(
        self, store: SchedulerStore, ids: IdSource, renderer: Renderer, webhooks: WebhookKeeper
    ) -> None:
        """Args: store: the database; ids: names tasks; renderer: reads their templates; webhooks: judges theirs."""
        self._store = store
        self._ids = ids
        self._renderer = renderer
        self._webhooks = webhooks

    async def create(self, caller: Caller, content: TaskContent, request_id: str) -> Task:
        """Creates a task.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; INVALID_ARGUMENT with INVALID_REQUEST or
                REQUEST_ID_REUSED; UNAVAILABLE with RENDERER_UNAVAILABLE.
        """
        require_writer(caller)
        _check(content)
        self._webhooks.check(content.webhook)
        await check_template(content.prompt_template, content.variables, self._renderer)
        task_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await transaction.insert_task(task_id, content)
                if content.webhook is not None:
                    await self._webhooks.keep_secret(transaction, task_id, caller.user_id)
                return task_id.bytes

            made = await transaction.once("CreateTask", request_id, canonical(content), run)
            return await transaction.get_task(UUID(bytes=made))

    async def get(self, caller: Caller, task_id: UUID) -> Task:
        """Returns a task.

        Raises:
            ServiceError: NOT_FOUND with TASK_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.get_task(task_id)

    async def list_page(
        self, caller: Caller, wanted: TaskFilter, before: UUID | None, limit: int
    ) -> list[Task]:
        """Returns at most `limit` of the caller's tasks, the newest first, that are older than `before`."""
        async with self._store.begin(caller) as transaction:
            return await transaction.list_tasks(wanted, before, limit)

    async def update(self, caller: Caller, change: UpdateTask) -> Task:
        """Changes a task.

        Raises:
            ServiceError: NOT_FOUND with TASK_NOT_FOUND; ABORTED with ETAG_MISMATCH; INVALID_ARGUMENT with
                INVALID_REQUEST; UNAVAILABLE with RENDERER_UNAVAILABLE.
        """
        require_writer(caller)
        self._webhooks.check(change.values.get("webhook"))
        judged = None
        while True:
            try:
                return await self._update(caller, change, judged)
            except _Unjudged as unjudged:
                # A template is read outside of the transaction: it may take seconds, and connections are few.
                await check_template(*unjudged.template, self._renderer)
                judged = unjudged.template

    async def _update(self, caller: Caller, change: UpdateTask, judged: _Template | None) -> Task:
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                task = await transaction.get_task(change.task_id, lock=True)
                _check_etag(task, change.etag)
                content = replace(task.content, **change.values)
                template = (content.prompt_template, content.variables)
                if change.values.keys() & {"prompt_template", "variables"} and template != judged:
                    raise _Unjudged(template)
                _check(content)
                await transaction.update_task(task.id, content)
                if content.webhook is not None:
                    await self._webhooks.keep_secret(transaction, task.id, task.user_id)
                return b""

            request = canonical(change.task_id, change.values, change.etag)
            await transaction.once("UpdateTask", change.request_id, request, run)
            return await transaction.get_task(change.task_id)

    async def delete(self, caller: Caller, task_id: UUID, etag: str, request_id: str) -> None:
        """Deletes a task: it is invisible at once, and its rows go when nothing of it is under way.

        Raises:
            ServiceError: NOT_FOUND with TASK_NOT_FOUND; ABORTED with ETAG_MISMATCH.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                _check_etag(await transaction.get_task(task_id, lock=True), etag)
                await transaction.mark_task_deleted(task_id)
                return b""

            await transaction.once("DeleteTask", request_id, canonical(task_id, etag), run)


def _check(content: TaskContent) -> None:
    fault = find_fault(content.sdk_options.get("output_schema"))
    if fault is not None:
        raise invalid_request("sdk_options.output_schema", fault)
    content.retry_policy.check()


def _check_etag(task: Task, etag: str) -> None:
    if etag and etag != task.etag:
        raise etag_mismatch("task")
