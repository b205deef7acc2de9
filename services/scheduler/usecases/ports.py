"""The ports of the use cases: what they need of the outside, as protocols that adapters fulfil."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.scheduler.domain.entities import Task, TaskContent


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; `user_id` None means all that the caller may see."""

    user_id: UUID | None = None
    name_contains: str = ""


class SchedulerTransaction(Protocol):
    """A caller's transaction: it sees what the caller may see, and commits when its block ends without an error.

    What is not there and what is not the caller's is answered alike: NOT_FOUND.
    """

    async def once(
        self, method: str, request_id: str, request: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Does a mutation once for each request id, known for 24 hours; see `kernel.db.idempotency.once`."""

    async def insert_task(self, task_id: UUID, content: TaskContent) -> None:
        """Creates a task of the caller's."""

    async def update_task(self, task_id: UUID, content: TaskContent) -> None:
        """Changes a task, and with it its version."""

    async def mark_task_deleted(self, task_id: UUID) -> None:
        """Makes a task invisible; its rows are removed later."""

    async def get_task(self, task_id: UUID, *, lock: bool = False) -> Task:
        """Returns a task; with `lock` nobody else changes it until the end of the transaction."""

    async def list_tasks(self, wanted: TaskFilter, before: UUID | None, limit: int) -> list[Task]:
        """Returns tasks, the newest first."""


class SchedulerStore(Protocol):
    """The database as use cases see it."""

    def begin(self, caller: Caller) -> AbstractAsyncContextManager[SchedulerTransaction]:
        """Opens a caller's transaction."""
