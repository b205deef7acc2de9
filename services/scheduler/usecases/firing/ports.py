"""What firing needs of the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.scheduler.domain.backfills import Backfill, BackfillState
from services.scheduler.domain.entities import Task
from services.scheduler.domain.firing import FirePlan, OpenRun
from services.scheduler.domain.runs import Failure, RunContent
from services.scheduler.domain.schedules import Schedule, Standing


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule that is due, with all that its fires need.

    Attributes:
        schedule: It.
        task: Its task.
        prompt: What its runs are told; None where it cannot be rendered.
        fault: Why not; None where it can.
        now: The database's time, at which it was found.
    """

    schedule: Schedule
    task: Task
    prompt: str | None
    fault: Failure | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that this version cannot read, and why."""

    id: UUID
    error: Exception


@dataclass(frozen=True, slots=True)
class DueBackfill:
    """A backfill with fires to make, and what they need."""

    backfill: Backfill
    of: DueSchedule


@dataclass(frozen=True, slots=True)
class Fired:
    """What is to be recorded of a look at a schedule.

    Attributes:
        content: What each of the runs does; None where there are none.
        standing: Where the schedule stands afterwards.
    """

    due: DueSchedule
    content: RunContent | None
    plan: FirePlan
    standing: Standing
    remaining_runs: int | None
    missed: int


@dataclass(frozen=True, slots=True)
class BackfillFired:
    """What is to be recorded of a look at a backfill; `waits`: it is looked at again after a while."""

    due: DueBackfill
    content: RunContent | None
    plan: FirePlan
    handled_until: datetime
    state: BackfillState
    waits: bool


class FireTransaction(Protocol):
    """One look at what is due, all of it recorded or nothing.

    What it takes is locked until its end, and passed over by the looks of other replicas.
    """

    async def take_due(self, limit: int, aside: Sequence[UUID]) -> list[DueSchedule | Unreadable]:
        """Locks schedules that are due by the database's clock, those that are due longest first, `aside` left out."""

    async def take_backfill(self, aside: Sequence[UUID]) -> DueBackfill | Unreadable | None:
        """Locks a backfill with fires to make, and its schedule, `aside` left out; None if there is none."""

    async def open_runs(self, schedule_ids: Sequence[UUID]) -> Mapping[UUID, list[OpenRun]]:
        """The runs of locked schedules that are not over, in the order of their fires."""

    async def hold_runs(self, schedule_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Locks the runs of locked schedules that are not over, without waiting: no worker takes one that is queued.

        Returns:
            The schedules of which somebody else has locked one.
        """

    async def pause(self, schedule_id: UUID, note: str) -> None:
        """Keeps a locked schedule from firing until somebody resumes it."""

    async def give_up_backfill(self, backfill_id: UUID) -> None:
        """Cancels a locked backfill."""

    async def record(self, fired: Sequence[Fired]) -> None:
        """Makes the runs of schedules, and moves the schedules on."""

    async def record_backfill(self, fired: BackfillFired) -> None:
        """Makes the runs of a backfill, and moves it on."""


class Fires(Protocol):
    """The schedules of all tenants. All methods raise ServiceError UNAVAILABLE while the database is away."""

    def begin(self) -> AbstractAsyncContextManager[FireTransaction]:
        """Opens a transaction; it commits when its block ends without an error."""

    async def seconds_to_fire(self, aside: Sequence[UUID]) -> float | None:
        """How long until a schedule is due, `aside` left out; 0 or less if one is, None if none will be."""

    async def seconds_to_backfill(self, aside: Sequence[UUID]) -> float | None:
        """The same of backfills."""


@dataclass(frozen=True, slots=True)
class StalePrompt:
    """A schedule whose prompt is to be rendered, as it was when it was found."""

    schedule: Schedule
    task: Task


class Prompts(Protocol):
    """The prompts of schedules. All methods raise ServiceError UNAVAILABLE while the database is away."""

    async def stale(self, limit: int, aside: Sequence[UUID]) -> list[StalePrompt | Unreadable]:
        """Schedules whose prompt is to be rendered, `aside` left out.

        Those that are due soonest of each organization first, so that none waits for all of another.
        """

    async def keep(self, found: StalePrompt, prompt: str | None, fault: Failure | None) -> bool:
        """Records a prompt, or why there is none, without waiting.

        Returns:
            False if nothing was recorded: task or schedule have changed, or somebody has locked them.
        """
