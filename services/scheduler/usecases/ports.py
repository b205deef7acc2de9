"""The ports of the use cases: what they need of the outside, as protocols that adapters fulfil."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.scheduler.domain.backfills import Backfill
from services.scheduler.domain.entities import Task, TaskContent
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.runs import Run, RunAttempt, RunContent
from services.scheduler.domain.schedules import Schedule, ScheduleContent, Standing
from services.scheduler.usecases.webhooks.ports import WebhookTransaction


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; `user_id` None means all that the caller may see."""

    user_id: UUID | None = None
    name_contains: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleFilter:
    """Which schedules to list; None and nothing mean any."""

    user_id: UUID | None = None
    task_id: UUID | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule to create, for the owner of its task."""

    id: UUID
    task_id: UUID
    user_id: UUID
    content: ScheduleContent
    standing: Standing
    prompt: str


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; None and nothing mean any."""

    user_id: UUID | None = None
    task_id: UUID | None = None
    schedule_id: UUID | None = None
    backfill_id: UUID | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to make, for the owner of its task, to be claimed at once."""

    id: UUID
    task_id: UUID
    user_id: UUID
    content: RunContent
    retry_of: UUID | None = None


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run with the attempts at it, as they stood at one moment."""

    run: Run
    attempts: list[RunAttempt]


@dataclass(frozen=True, slots=True)
class NewBackfill:
    """A backfill to make, for the owner of its schedule."""

    id: UUID
    schedule_id: UUID
    user_id: UUID
    start_time: datetime
    end_time: datetime
    overlap_policy: OverlapPolicy


class SchedulerTransaction(WebhookTransaction, Protocol):
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
        """Changes a task, and with it its version; the prompts of its schedules are rendered anew before they fire."""

    async def mark_task_deleted(self, task_id: UUID) -> None:
        """Makes a task invisible, removes its schedules and cancels its runs; its other rows are removed later."""

    async def get_task(self, task_id: UUID, *, lock: bool = False) -> Task:
        """Returns a task; with `lock` nobody else changes it until the end of the transaction."""

    async def list_tasks(self, wanted: TaskFilter, before: UUID | None, limit: int) -> list[Task]:
        """Returns tasks, the newest first."""

    async def count_schedules(self, user_id: UUID) -> int:
        """How many schedules an owner has."""

    async def insert_schedule(self, new: NewSchedule) -> None:
        """Creates a schedule."""

    async def update_schedule(
        self,
        schedule_id: UUID,
        content: ScheduleContent,
        standing: Standing,
        note: str,
        prompt: str | None = None,
    ) -> None:
        """Changes a schedule, and with it its version; with a prompt that of its runs."""

    async def delete_schedule(self, schedule_id: UUID) -> None:
        """Removes a schedule that is locked, and cancels the runs that it holds back."""

    async def get_schedule(self, schedule_id: UUID, *, lock: bool = False) -> Schedule:
        """Returns a schedule; with `lock` nobody else changes it or makes its fires meanwhile."""

    async def list_schedules(self, wanted: ScheduleFilter, before: UUID | None, limit: int) -> list[Schedule]:
        """Returns schedules, the newest first."""

    async def insert_run(self, new: NewRun) -> None:
        """Makes a run."""

    async def get_run(self, run_id: UUID, *, lock: bool = False) -> Run:
        """Returns a run; with `lock` nobody writes to it, or to its schedule, until the end of the transaction."""

    async def list_runs(self, wanted: RunFilter, before: UUID | None, limit: int) -> list[Run]:
        """Returns runs without what may be large, the newest first."""

    async def show_run(self, run_id: UUID) -> ShownRun:
        """Returns a run with its attempts."""

    async def cancel_run(self, run_id: UUID, *, at_once: bool) -> None:
        """Asks for the end of a run that is locked; `at_once` for one that no worker has: it is over then."""

    async def count_backfills(self, user_id: UUID) -> int:
        """How many backfills of an owner's are at work."""

    async def insert_backfill(self, new: NewBackfill) -> None:
        """Makes a backfill, of which nothing is done yet."""

    async def get_backfill(self, backfill_id: UUID, *, lock: bool = False) -> Backfill:
        """Returns a backfill; with `lock` its schedule is locked: nobody makes fires of either meanwhile."""

    async def list_backfills(self, schedule_id: UUID, before: UUID | None, limit: int) -> list[Backfill]:
        """Returns the backfills of a schedule, the newest first."""

    async def cancel_backfill(self, backfill_id: UUID) -> None:
        """Ends a backfill that is not over."""

    async def now(self) -> datetime:
        """The database's time."""


class SchedulerStore(Protocol):
    """The database as use cases see it."""

    def begin(self, caller: Caller) -> AbstractAsyncContextManager[SchedulerTransaction]:
        """Opens a caller's transaction."""
