"""`client.tasks`: work for agents that is done again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import scheduler_service_pb2_grpc
from aiagent.scheduler.v1.task_pb2 import RetryPolicy, Task, TaskVariable
from aiagent.scheduler.v1.webhook_pb2 import Webhook
from aiagent.session.v1.agent_options_pb2 import AgentOptions
from aiagent_client.connection import Connection

if TYPE_CHECKING:
    from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub


class Tasks:
    """Calls of the scheduler service about tasks. All of them raise ApiError; the list pages by itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: SchedulerServiceAsyncStub = scheduler_service_pb2_grpc.SchedulerServiceStub(
            connection.channel
        )

    async def create(
        self,
        name: str,
        prompt_template: str,
        *,
        variables: Sequence[TaskVariable] = (),
        sdk_options: AgentOptions | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        run_timeout: timedelta | None = None,
        retry_policy: RetryPolicy | None = None,
        max_concurrent_runs: int = 0,
        run_budget_usd: float = 0.0,
        webhook: Webhook | None = None,
        request_id: str = "",
    ) -> Task:
        """Creates a task; `prompt_template` is a Jinja2 template over `variables`."""
        request = pb.CreateTaskRequest(
            name=name,
            prompt_template=prompt_template,
            variables=variables,
            sdk_options=sdk_options,
            labels=labels or {},
            priority=priority,
            retry_policy=retry_policy,
            max_concurrent_runs=max_concurrent_runs,
            run_budget_usd=run_budget_usd,
            webhook=webhook,
            request_id=request_id,
        )
        if run_timeout is not None:
            request.run_timeout.FromTimedelta(run_timeout)
        return await self._connection.call(self._stub.CreateTask, request)

    async def get(self, task_id: str) -> Task:
        """Returns a task. Raises NotFoundError with TASK_NOT_FOUND."""
        return await self._connection.call(self._stub.GetTask, pb.GetTaskRequest(task_id=task_id))

    async def list(self, *, name_contains: str = "", page_size: int = 0) -> AsyncIterator[Task]:
        """Yields the caller's tasks, the newest first."""
        request = pb.ListTasksRequest(name_contains=name_contains, page_size=page_size)
        while True:
            page = await self._connection.call(self._stub.ListTasks, request)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update(
        self,
        task_id: str,
        *,
        name: str | None = None,
        prompt_template: str | None = None,
        variables: Sequence[TaskVariable] | None = None,
        sdk_options: AgentOptions | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        run_timeout: timedelta | None = None,
        retry_policy: RetryPolicy | None = None,
        max_concurrent_runs: int | None = None,
        run_budget_usd: float | None = None,
        webhook: Webhook | None = None,
        etag: str = "",
    ) -> Task:
        """Changes what is given; what has parts is replaced as a whole.

        A webhook without a URL removes the one there is.
        Raises AbortedError with ETAG_MISMATCH when `etag` is not that of the current version.
        """
        given = {
            "name": name,
            "prompt_template": prompt_template,
            "variables": variables,
            "sdk_options": sdk_options,
            "labels": labels,
            "priority": priority,
            "run_timeout": run_timeout,
            "retry_policy": retry_policy,
            "max_concurrent_runs": max_concurrent_runs,
            "run_budget_usd": run_budget_usd,
            "webhook": webhook,
        }
        changes = {field: value for field, value in given.items() if value is not None}
        mask = FieldMask(paths=list(changes))
        changes.pop("run_timeout", None)
        if webhook is not None and not webhook.url:
            # Named by the mask, and missing.
            changes.pop("webhook")
        # By their names: which there are is known only now.
        request = pb.UpdateTaskRequest(task_id=task_id, etag=etag, update_mask=mask, **changes)  # type: ignore[arg-type]
        if run_timeout is not None:
            request.run_timeout.FromTimedelta(run_timeout)
        return await self._connection.call(self._stub.UpdateTask, request)

    async def delete(self, task_id: str, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a task."""
        request = pb.DeleteTaskRequest(task_id=task_id, etag=etag, request_id=request_id)
        await self._connection.call(self._stub.DeleteTask, request)
