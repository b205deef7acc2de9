"""What has no more meaning goes, in transactions of the system role: a bounded number of rows of one kind in each.

What depends on a row goes with it by its references, in the same statement; so runs, which a task may have any number
of, go by themselves before their task does. Rows that somebody holds are skipped: replicas share the work, and a
process that dies has removed what it has committed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.scheduler.domain.webhooks import DeliveryState
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.tables import runs, tasks
from services.scheduler.store.webhook_tables import webhook_deliveries

TASKS_AT_ONCE: Final = 100
RUNS_AT_ONCE: Final = 1000
_PENDING = webhook_deliveries.c.state == DeliveryState.PENDING.value
# Nothing of it is under way, and what its last runs have to say was told.
_OVER = sa.and_(
    tasks.c.delete_time.is_not(None),
    sa.not_(sa.exists().where(runs.c.task_id == tasks.c.id, runs.c.end_time.is_(None))),
    sa.not_(sa.exists().where(webhook_deliveries.c.task_id == tasks.c.id, _PENDING)),
)
# No EXISTS: the planner makes a join of that, and reads all runs that there are.
_HAS_RUNS = sa.select(sa.true()).where(runs.c.task_id == tasks.c.id).limit(1).scalar_subquery()
_UNTOLD = sa.exists().where(webhook_deliveries.c.run_id == runs.c.id, _PENDING)
_OLDEST_TASKS = sa.select(tasks.c.id).order_by(tasks.c.delete_time).with_for_update(skip_locked=True)


async def runs_of_deleted_tasks(connection: AsyncConnection, limit: int = RUNS_AT_ONCE) -> int:
    """Removes runs of deleted tasks of which nothing is under way, with their attempts and deliveries.

    Args:
        connection: A system transaction.
        limit: How many at most; those of the tasks that were deleted first.

    Returns:
        How many.
    """
    query = _OLDEST_TASKS.where(_OVER, _HAS_RUNS.is_not(None)).limit(TASKS_AT_ONCE)
    found = (await connection.execute(query)).scalars().all()
    if not found:
        return 0
    # Nobody else has them: the tasks are locked, and nothing of them is open. In the order of an index, so that what
    # was removed before is not read again.
    of_them = sa.select(runs.c.id).where(runs.c.task_id.in_(found))
    gone = of_them.order_by(runs.c.task_id, runs.c.id).limit(limit)
    return await _remove_runs(connection, gone)


async def deleted_tasks(connection: AsyncConnection, limit: int = TASKS_AT_ONCE) -> int:
    """Removes deleted tasks that have no run any more, those that were deleted first; returns how many."""
    found = _OLDEST_TASKS.where(_OVER, _HAS_RUNS.is_(None)).limit(limit)
    return (await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(found)))).rowcount


async def old_runs(connection: AsyncConnection, keep: timedelta, limit: int = RUNS_AT_ONCE) -> int:
    """Removes runs that ended long ago, with their attempts and deliveries; not what a receiver is still to be told.

    Args:
        connection: A system transaction.
        keep: How long after their end they are kept.
        limit: How many at most; those that ended first.

    Returns:
        How many.
    """
    gone = (
        sa.select(runs.c.id)
        .where(runs.c.end_time < sa.func.clock_timestamp() - sa.cast(keep, sa.Interval), sa.not_(_UNTOLD))
        .order_by(runs.c.end_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return await _remove_runs(connection, gone)


async def _remove_runs(connection: AsyncConnection, gone: sa.Select[tuple[object]]) -> int:
    removed = (await connection.execute(sa.delete(runs).where(runs.c.id.in_(gone)))).rowcount
    if removed:
        # Who watches one hears that it is gone.
        note(connection, RUNS_CHANGED)
    return removed
