"""Runs of tasks: make, read, cancel, do again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.scheduler.domain.errors import run_ended, run_not_retryable
from services.scheduler.domain.runs import Run
from services.scheduler.domain.states import RETRYABLE_RUN_STATES, RunState
from services.scheduler.domain.templates import Renderer
from services.scheduler.usecases.access import canonical, require_writer
from services.scheduler.usecases.ports import NewRun, RunFilter, SchedulerStore, ShownRun
from services.scheduler.usecases.prompts import Rendered, Unrendered, render


class WorkerWaker(Protocol):
    """Tells workers that there is something to claim; who misses it finds out by looking."""

    def wake(self) -> None:
        """Wakes them."""


class Runs:
    """The use cases."""

    def __init__(
        self, store: SchedulerStore, ids: IdSource, renderer: Renderer, workers: WorkerWaker
    ) -> None:
        """Args: store: the database; ids: names runs; renderer: renders prompts; workers: carry them out."""
        self._store = store
        self._ids = ids
        self._renderer = renderer
        self._workers = workers

    async def run(
        self, caller: Caller, task_id: UUID, variables: Mapping[str, Any], request_id: str
    ) -> ShownRun:
        """Makes a run of a task, for the task's owner.

        Args:
            caller: who wants it.
            task_id: the task.
            variables: values by name, as JSON.
            request_id: as sent.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with TASK_NOT_FOUND; INVALID_ARGUMENT with
                INVALID_REQUEST as `prompts.render` says, or with REQUEST_ID_REUSED; UNAVAILABLE with
                RENDERER_UNAVAILABLE.
        """
        require_writer(caller)
        rendered = None
        while True:
            try:
                made = await self._make(caller, task_id, variables, request_id, rendered)
            except Unrendered as unrendered:
                rendered = await render(self._renderer, unrendered.task, variables)
            else:
                self._workers.wake()
                return made

    async def _make(
        self,
        caller: Caller,
        task_id: UUID,
        variables: Mapping[str, Any],
        request_id: str,
        rendered: Rendered | None,
    ) -> ShownRun:
        run_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                # Locked, so that it is neither changed nor deleted meanwhile.
                task = await transaction.get_task(task_id, lock=True)
                if rendered is None or rendered.version != task.version:
                    raise Unrendered(task)
                await transaction.insert_run(NewRun(run_id, task.id, task.user_id, rendered.content))
                return run_id.bytes

            request = canonical(task_id, variables)
            made = UUID(bytes=await transaction.once("RunTask", request_id, request, run))
            return await transaction.show_run(made)

    async def get(self, caller: Caller, run_id: UUID) -> ShownRun:
        """Returns a run with its attempts.

        Raises:
            ServiceError: NOT_FOUND with TASK_RUN_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.show_run(run_id)

    async def list_page(
        self, caller: Caller, wanted: RunFilter, before: UUID | None, limit: int
    ) -> list[Run]:
        """Returns at most `limit` of the caller's runs, the newest first, that are older than `before`."""
        async with self._store.begin(caller) as transaction:
            return await transaction.list_runs(wanted, before, limit)

    async def cancel(self, caller: Caller, run_id: UUID, request_id: str) -> ShownRun:
        """Asks for the end of a run; one that no worker has is over at once.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with TASK_RUN_NOT_FOUND;
                FAILED_PRECONDITION with TASK_RUN_ENDED.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def cancel() -> bytes:
                found = await transaction.get_run(run_id, lock=True)
                if found.state.final:
                    raise run_ended(found.state.value)
                await transaction.cancel_run(run_id, at_once=found.state is not RunState.RUNNING)
                return b""

            await transaction.once("CancelTaskRun", request_id, canonical(run_id), cancel)
            return await transaction.show_run(run_id)

    async def retry(self, caller: Caller, run_id: UUID, request_id: str) -> ShownRun:
        """Does a run again that ended without success: a new one with the same content, queued at once.

        The task is locked, so that it is not deleted meanwhile; the run need not be: what is over stays as it is.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; NOT_FOUND with TASK_RUN_NOT_FOUND or TASK_NOT_FOUND;
                FAILED_PRECONDITION with TASK_RUN_NOT_RETRYABLE: it is open, has succeeded, or failed for want of a
                prompt.
        """
        require_writer(caller)
        new_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def retry() -> bytes:
                found = await transaction.get_run(run_id)
                if found.state not in RETRYABLE_RUN_STATES:
                    raise run_not_retryable(found.state.value, f"the run is {found.state.value}")
                if not found.content.prompt.strip():
                    raise run_not_retryable(
                        found.state.value, "the run has no prompt that could be sent again"
                    )
                await transaction.get_task(found.task_id, lock=True)
                again = NewRun(new_id, found.task_id, found.user_id, found.content, retry_of=found.id)
                await transaction.insert_run(again)
                return new_id.bytes

            made = UUID(bytes=await transaction.once("RetryTaskRun", request_id, canonical(run_id), retry))
            shown = await transaction.show_run(made)
        self._workers.wake()
        return shown
