"""What is due, and what its fires come to, in transactions of the system role.

The locks are those of `usecases.firing.ticker`: schedule, backfill, run, in this order. A task is read without a lock:
whoever changes what a prompt is made of marks its schedules, and a marked one is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.scheduler.domain.backfills import BackfillState
from services.scheduler.domain.firing import FirePlan, OpenRun
from services.scheduler.domain.runs import EndedRun, Failure, RunContent, Usage
from services.scheduler.domain.schedules import ScheduleState
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, facts, notes
from services.scheduler.store.endings import Ending
from services.scheduler.store.rows import backfill_of, prompt_columns, schedule_of, task_of
from services.scheduler.store.run_rows import content_columns
from services.scheduler.store.tables import backfills, runs, schedules, tasks
from services.scheduler.usecases.firing.ports import (
    BackfillFired,
    DueBackfill,
    DueSchedule,
    Fired,
    StalePrompt,
    Unreadable,
)

MOST_IDLE_SECONDS: Final = 5.0
"""A look that is frozen for longer is undone, and what it has locked is free. It thinks for less than a second."""
BACKFILL_PAUSE: Final = timedelta(seconds=1)
"""Between two looks at a backfill that waits for room."""
_NOW = sa.func.clock_timestamp()
# The begin of the statement: what PostgreSQL may compare an index with, unlike a clock that moves while it reads.
_SINCE = sa.func.statement_timestamp()
_ACTIVE: Final = ScheduleState.ACTIVE.value
_OF_TASK: Final = "of_task_"
_WITH_TASK = (
    *schedules.c,
    *(column.label(_OF_TASK + column.name) for column in tasks.c),
    _NOW.label("now"),
)
_JOINED = schedules.join(tasks, tasks.c.id == schedules.c.task_id)
# Built once: building them for each look costs more than running them.
_TAKE_DUE = (
    sa.select(*_WITH_TASK)
    .select_from(_JOINED)
    .where(
        schedules.c.state == _ACTIVE,
        sa.not_(schedules.c.prompt_stale),
        schedules.c.next_due_time <= _SINCE,
        schedules.c.id != sa.all_(sa.bindparam("aside", type_=ARRAY(schedules.c.id.type))),
    )
    .order_by(schedules.c.next_due_time)
    .limit(sa.bindparam("places", type_=sa.Integer))
    .with_for_update(of=schedules, skip_locked=True)
)
_TAKE_BACKFILL = (
    sa.select(*_WITH_TASK, *(column.label("of_backfill_" + column.name) for column in backfills.c))
    .select_from(_JOINED.join(backfills, backfills.c.schedule_id == schedules.c.id))
    .where(
        backfills.c.state == BackfillState.RUNNING.value,
        backfills.c.available_time <= _SINCE,
        sa.not_(schedules.c.prompt_stale),
        backfills.c.id != sa.all_(sa.bindparam("aside", type_=ARRAY(backfills.c.id.type))),
    )
    .order_by(backfills.c.available_time)
    .limit(1)
    .with_for_update(of=(schedules, backfills), skip_locked=True)
)
_OPEN = (
    sa.select(runs.c.schedule_id, runs.c.id, runs.c.state)
    .where(
        runs.c.schedule_id == sa.any_(sa.bindparam("ids", type_=ARRAY(runs.c.id.type))),
        runs.c.end_time.is_(None),
    )
    .order_by(runs.c.schedule_id, runs.c.fire_time, runs.c.id)
)
_LOCK_OPEN = (
    sa.select(runs.c.id)
    .where(
        runs.c.schedule_id == sa.any_(sa.bindparam("ids", type_=ARRAY(runs.c.id.type))),
        runs.c.end_time.is_(None),
    )
    .with_for_update(key_share=True, skip_locked=True)
)
_ASK_END = (
    sa.update(runs)
    .where(runs.c.id == sa.any_(sa.bindparam("ids", type_=ARRAY(runs.c.id.type))))
    .values(
        cancel_time=sa.func.coalesce(runs.c.cancel_time, _NOW), update_time=_NOW, version=runs.c.version + 1
    )
    .returning(runs.c.id, runs.c.state)
)
# Nothing is there already but by a fault of ours, and then what is there counts.
_INSERT_RUNS = insert(runs).on_conflict_do_nothing()
_MOVE_SCHEDULE = (
    sa.update(schedules)
    .where(schedules.c.id == sa.bindparam("moved"))
    .values(
        state=sa.bindparam("to_state"),
        handled_until=sa.bindparam("to_handled_until"),
        next_fire_time=sa.bindparam("to_fire"),
        next_due_time=sa.bindparam("to_due"),
        remaining_runs=sa.bindparam("to_remaining"),
        missed_fires=schedules.c.missed_fires + sa.bindparam("missed", type_=sa.BigInteger),
        last_fire_time=sa.func.coalesce(
            sa.bindparam("fired", type_=schedules.c.last_fire_time.type), schedules.c.last_fire_time
        ),
    )
)
# By steps through the index from one organization to the next: of each no more are read than are taken in all.
_STALE_IDS = sa.text(
    """
    WITH RECURSIVE organizations AS (
        (SELECT organization_id FROM scheduler.schedules WHERE prompt_stale ORDER BY organization_id LIMIT 1)
        UNION ALL
        SELECT (SELECT s.organization_id FROM scheduler.schedules AS s
                WHERE s.prompt_stale AND s.organization_id > o.organization_id
                ORDER BY s.organization_id LIMIT 1)
        FROM organizations AS o WHERE o.organization_id IS NOT NULL
    )
    SELECT w.id FROM organizations AS o
    CROSS JOIN LATERAL (
        SELECT s.id, s.next_due_time, row_number() OVER (ORDER BY s.next_due_time) AS place
        FROM scheduler.schedules AS s
        WHERE s.prompt_stale AND s.organization_id = o.organization_id AND s.id <> ALL(:aside)
        ORDER BY s.next_due_time LIMIT :places
    ) AS w
    ORDER BY w.place, w.next_due_time LIMIT :places
    """
).bindparams(sa.bindparam("aside", type_=ARRAY(sa.UUID())), sa.bindparam("places", type_=sa.Integer))
_STALE = (
    sa.select(*_WITH_TASK)
    .select_from(_JOINED)
    .where(
        schedules.c.id == sa.any_(sa.bindparam("ids", type_=ARRAY(schedules.c.id.type))),
        schedules.c.prompt_stale,
    )
)
_LOCK_TASK = (
    sa.select(tasks.c.version)
    .where(tasks.c.id == sa.bindparam("task_id", type_=tasks.c.id.type))
    .with_for_update(read=True, skip_locked=True)
)
_LOCK_SCHEDULE = (
    sa.select(schedules.c.version)
    .where(schedules.c.id == sa.bindparam("schedule_id", type_=schedules.c.id.type))
    .with_for_update(key_share=True, skip_locked=True)
)
_NEXT_FIRE = sa.select(sa.func.extract("epoch", sa.func.min(schedules.c.next_due_time) - _NOW)).where(
    schedules.c.id
    == sa.select(schedules.c.id)
    .where(
        schedules.c.state == _ACTIVE,
        sa.not_(schedules.c.prompt_stale),
        schedules.c.id != sa.all_(sa.bindparam("aside", type_=ARRAY(schedules.c.id.type))),
    )
    .order_by(schedules.c.next_due_time)
    .limit(1)
    .scalar_subquery()
)
_NEXT_BACKFILL = (
    sa.select(sa.func.extract("epoch", sa.func.min(backfills.c.available_time) - _NOW))
    .select_from(backfills.join(schedules, schedules.c.id == backfills.c.schedule_id))
    .where(
        backfills.c.state == BackfillState.RUNNING.value,
        sa.not_(schedules.c.prompt_stale),
        backfills.c.id != sa.all_(sa.bindparam("aside", type_=ARRAY(backfills.c.id.type))),
    )
)


async def seconds_to_fire(connection: AsyncConnection, aside: Sequence[UUID]) -> float | None:
    """How long until a schedule is due, `aside` left out; None if none will be."""
    return await _seconds(connection, _NEXT_FIRE, aside)


async def seconds_to_backfill(connection: AsyncConnection, aside: Sequence[UUID]) -> float | None:
    """The same of backfills."""
    return await _seconds(connection, _NEXT_BACKFILL, aside)


async def _seconds(connection: AsyncConnection, query: sa.Select[Any], aside: Sequence[UUID]) -> float | None:
    found: Any = (await connection.execute(query, {"aside": list(aside)})).scalar_one()
    return None if found is None else float(found)


class FiringTransaction:
    """See `usecases.firing.ports.FireTransaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Args: connection: a transaction of the system role."""
        self._connection = connection

    async def take_due(self, limit: int, aside: Sequence[UUID]) -> list[DueSchedule | Unreadable]:
        """Locks schedules that are due by the database's clock, those that are due longest first."""
        rows = await self._connection.execute(_TAKE_DUE, {"places": limit, "aside": list(aside)})
        return [_read(row, row.id, _due) for row in rows]

    async def take_backfill(self, aside: Sequence[UUID]) -> DueBackfill | Unreadable | None:
        """Locks a backfill with fires to make, and its schedule, `aside` left out; None if there is none."""
        row = (await self._connection.execute(_TAKE_BACKFILL, {"aside": list(aside)})).one_or_none()
        return None if row is None else _read(row, row.of_backfill_id, _due_backfill)

    async def open_runs(self, schedule_ids: Sequence[UUID]) -> Mapping[UUID, list[OpenRun]]:
        """The runs of locked schedules that are not over, in the order of their fires."""
        found: dict[UUID, list[OpenRun]] = {}
        for row in await self._connection.execute(_OPEN, {"ids": list(schedule_ids)}):
            found.setdefault(row.schedule_id, []).append(OpenRun(row.id, RunState(row.state)))
        return found

    async def hold_runs(self, schedule_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Locks the open runs of locked schedules; returns the schedules of which somebody else has locked one."""
        ids = {"ids": list(schedule_ids)}
        had = set((await self._connection.execute(_LOCK_OPEN, ids)).scalars())
        rows = await self._connection.execute(_OPEN, ids)
        return frozenset(row.schedule_id for row in rows if row.id not in had)

    async def pause(self, schedule_id: UUID, note: str) -> None:
        """Keeps a locked schedule from firing until somebody resumes it."""
        await self._connection.execute(
            sa.update(schedules)
            .where(schedules.c.id == schedule_id)
            .values(
                state=ScheduleState.PAUSED.value,
                next_fire_time=None,
                next_due_time=None,
                note=note,
                version=schedules.c.version + 1,
                update_time=_NOW,
            )
        )

    async def give_up_backfill(self, backfill_id: UUID) -> None:
        """Cancels a locked backfill."""
        await self._connection.execute(
            sa.update(backfills)
            .where(backfills.c.id == backfill_id)
            .values(state=BackfillState.CANCELLED.value, complete_time=_NOW)
        )

    async def record(self, fired: Sequence[Fired]) -> None:
        """Makes the runs of schedules, and moves the schedules on."""
        await self._connection.execute(_MOVE_SCHEDULE, [_moved(one) for one in fired])
        await self._make([(one.due, one.content, one.plan, None) for one in fired])

    async def record_backfill(self, fired: BackfillFired) -> None:
        """Makes the runs of a backfill, and moves it on."""
        over = fired.state is not BackfillState.RUNNING
        await self._connection.execute(
            sa.update(backfills)
            .where(backfills.c.id == fired.due.backfill.id)
            .values(
                handled_until=fired.handled_until,
                fire_count=backfills.c.fire_count + len(fired.plan.runs),
                state=fired.state.value,
                complete_time=_NOW if over else None,
                available_time=_NOW + sa.cast(BACKFILL_PAUSE if fired.waits else timedelta(), sa.Interval),
            )
        )
        await self._make([(fired.due.of, fired.content, fired.plan, fired.due.backfill.id)])

    async def _make(
        self, plans: Sequence[tuple[DueSchedule, RunContent | None, FirePlan, UUID | None]]
    ) -> None:
        rows: list[dict[str, Any]] = []
        queued: dict[UUID, int] = {}
        for due, content, plan, backfill_id in plans:
            if content is None:
                continue
            columns = content_columns(content)
            for run in plan.runs:
                over = run.state.final
                failed = due.fault if run.state is RunState.FAILED else None
                rows.append(
                    {
                        "id": run.id,
                        "organization_id": due.schedule.organization_id,
                        "user_id": due.schedule.user_id,
                        "task_id": due.schedule.task_id,
                        "schedule_id": due.schedule.id,
                        "backfill_id": backfill_id,
                        "fire_time": run.fire_time,
                        "due_time": run.due_time,
                        "available_time": due.now,
                        "state": run.state.value,
                        "skip_reason": run.skip_reason.value if run.skip_reason else None,
                        "failure_reason": failed.reason if failed else None,
                        "failure_message": failed.message if failed else None,
                        "end_time": due.now if over else None,
                        **columns,
                    }
                )
                if run.state is RunState.QUEUED:
                    queued[due.schedule.organization_id] = queued.get(due.schedule.organization_id, 0) + 1
        cancel = [run_id for _, _, plan, _ in plans for run_id in plan.cancel]
        supersede = [run_id for _, _, plan, _ in plans for run_id in plan.supersede]
        note(self._connection, notes.RUNS_CHANGED)
        if supersede:
            await endings.supersede(self._connection, supersede)
        if rows:
            await self._connection.execute(_INSERT_RUNS, rows)
        if cancel:
            asked = await self._connection.execute(_ASK_END, {"ids": cancel})
            waiting = [row.id for row in asked if row.state == RunState.QUEUED.value]
            await endings.end(self._connection, [Ending(run_id, RunState.CANCELLED) for run_id in waiting])
        await self._settle(rows)
        for organization_id, count in queued.items():
            await facts.add_queued(self._connection, organization_id, count)

    async def _settle(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does what follows from the end of runs that were made as over; of skipped ones nobody is told."""
        ended = [
            EndedRun(
                run_id=row["id"],
                organization_id=row["organization_id"],
                user_id=row["user_id"],
                task_id=row["task_id"],
                schedule_id=row["schedule_id"],
                state=RunState(row["state"]),
                failure=Failure(row["failure_reason"], row["failure_message"])
                if row["failure_reason"]
                else None,
                attempts=0,
                session_id=None,
                usage=Usage(),
                cost_usd=0.0,
                start_time=None,
                end_time=row["end_time"],
            )
            for row in rows
            if row["end_time"] is not None and row["state"] != RunState.SKIPPED.value
        ]
        if ended:
            await endings.settle(self._connection, ended)


async def stale_prompts(
    connection: AsyncConnection, limit: int, aside: Sequence[UUID]
) -> list[StalePrompt | Unreadable]:
    """Schedules whose prompt is to be rendered, those that are due soonest of each organization first."""
    ids = list((await connection.execute(_STALE_IDS, {"places": limit, "aside": list(aside)})).scalars())
    rows = await connection.execute(_STALE, {"ids": ids})
    found = {row.id: _read(row, row.id, _stale) for row in rows}
    return [found[schedule_id] for schedule_id in ids if schedule_id in found]


async def keep_prompt(
    connection: AsyncConnection, found: StalePrompt, prompt: str | None, fault: Failure | None
) -> bool:
    """Records a prompt, or why there is none; False if task or schedule have changed, or are locked.

    The task is locked first, so that nobody is at changing it: who does marks its schedules afterwards.
    """
    version = (await connection.execute(_LOCK_TASK, {"task_id": found.task.id})).scalar_one_or_none()
    if version != found.task.version:
        return False
    schedule = {"schedule_id": found.schedule.id}
    version = (await connection.execute(_LOCK_SCHEDULE, schedule)).scalar_one_or_none()
    if version != found.schedule.version:
        return False
    await connection.execute(
        sa.update(schedules)
        .where(schedules.c.id == found.schedule.id)
        .values(**prompt_columns(prompt, fault))
    )
    # Other replicas have left it out of account while it was stale.
    await notes.schedules_changed(connection)
    return True


def _read[Read](row: Any, row_id: UUID, read: Callable[[Any], Read]) -> Read | Unreadable:
    """Reads a row; one that another version has written must not keep the others from being read."""
    try:
        return read(row)
    except Exception as error:
        return Unreadable(row_id, error)


def _stale(row: Any) -> StalePrompt:
    return StalePrompt(schedule_of(row), task_of(_part(row, _OF_TASK)))


def _due_backfill(row: Any) -> DueBackfill:
    return DueBackfill(backfill_of(_part(row, "of_backfill_")), _due(row))


def _due(row: Any) -> DueSchedule:
    fault = None
    if row.prompt_fault_reason is not None:
        fault = Failure(row.prompt_fault_reason, row.prompt_fault_message)
    return DueSchedule(schedule_of(row), task_of(_part(row, _OF_TASK)), row.prompt, fault, row.now)


def _moved(fired: Fired) -> dict[str, Any]:
    standing = fired.standing
    return {
        "moved": fired.due.schedule.id,
        "to_state": standing.state.value,
        "to_handled_until": standing.handled_until,
        "to_fire": standing.next_fire_time,
        "to_due": standing.next_due_time,
        "to_remaining": fired.remaining_runs,
        "missed": fired.missed,
        "fired": fired.plan.runs[-1].fire_time if fired.plan.runs else None,
    }


def _part(row: Any, prefix: str) -> SimpleNamespace:
    """The columns of a row that carry a prefix, by their names without it."""
    return SimpleNamespace(
        **{
            name.removeprefix(prefix): value
            for name, value in row._mapping.items()
            if name.startswith(prefix)
        }
    )
