"""The one place through which runs that were open end, and what follows from it, in the transaction that ends them.

Who ends runs: a worker (`recording.record`), CancelTaskRun, DeleteSchedule and DeleteTask of what waits, a tick. Each

1. locks the schedules of the runs, in the order of their ids (`lock_schedules`), where a tick, a cancel or another end
   waits its turn: without it a fire could be held back behind a run that is ending, and nobody would let it go. A
   worker, which ends runs of many, waits for none of them (`lock_free_schedules`): it ends the others first;
2. locks the runs, in the order of their ids;
3. writes their last state (`end`), the facts and the deliveries that tell of it, pauses schedules, and promotes runs
   that were held back. Those are locked by nobody who does not hold their schedule.

A tick does two things besides, under its schedule's lock. Where a later fire takes the place of a run that is held
back, that one is SKIPPED (`supersede`). And a fire that comes to nothing is inserted as a run that is over: what
follows from its end is done here too (`settle`), unless it is SKIPPED. Of skipped runs, of both kinds, nobody is told,
neither by a fact nor by a webhook, and no schedule goes on or pauses for them: nothing of them was ever begun.

All of that commits together: a process that dies before the commit has ended nothing, and whoever holds the run then
ends it anew; after it nothing is left to do. What the commit wakes is a hint: workers look for themselves.

It works for many runs at once, and in a tenant's transaction as in the system's: who may see a run may see its
schedule, which belongs to the same person.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import prometheus_client
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import after_commit
from services.kernel.telemetry import registry
from services.scheduler.domain.overlap import OverlapPolicy, promote
from services.scheduler.domain.runs import EndedRun, Failure, Usage
from services.scheduler.domain.states import RunState
from services.scheduler.store import facts, webhooks
from services.scheduler.store.run_rows import TOKENS, failure_of, usage_of

ENDED: Final = prometheus_client.Counter(
    "aiagent_task_runs_ended_total",
    "Runs that have ended, by their last state, whoever ended them; not those that were skipped.",
    ("state",),
    registry=registry,
)
_NOTHING_USED: Final = Usage()
_IDS: Final = ARRAY(sa.UUID())
_TEXTS: Final = ARRAY(sa.Text())

AT_ONCE: Final = 500
"""How many runs that wait end in one transaction, when their task is deleted."""

_LOCK_SCHEDULES = sa.text(
    """
    SELECT s.id FROM scheduler.schedules AS s
    WHERE s.id IN (SELECT schedule_id FROM scheduler.runs WHERE id = ANY(:runs))
    ORDER BY s.id FOR NO KEY UPDATE
    """
).bindparams(sa.bindparam("runs", type_=_IDS))

# The array is read whole, whatever is found in it: each schedule is locked.
_LOCK_FREE_SCHEDULES = sa.text(
    """
    WITH had AS (
        SELECT s.id FROM scheduler.schedules AS s
        WHERE s.id IN (SELECT schedule_id FROM scheduler.runs WHERE id = ANY(:runs))
        ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT r.id FROM scheduler.runs AS r
    -- A schedule that is gone keeps no run from ending.
    WHERE r.id = ANY(:runs) AND r.schedule_id <> ALL(ARRAY(SELECT id FROM had))
        AND EXISTS (SELECT FROM scheduler.schedules AS s WHERE s.id = r.schedule_id)
    """
).bindparams(sa.bindparam("runs", type_=_IDS))

_END = sa.text(
    """
    UPDATE scheduler.runs AS r
    SET state = w.state, session_id = coalesce(w.session_id, r.session_id), result_text = w.result,
        structured_output_json = w.output, failure_reason = w.reason, failure_message = w.message,
        input_tokens = r.input_tokens + w.input_tokens, output_tokens = r.output_tokens + w.output_tokens,
        cache_read_tokens = r.cache_read_tokens + w.cache_read_tokens,
        cache_write_tokens = r.cache_write_tokens + w.cache_write_tokens,
        cost_usd = r.cost_usd + CAST(w.cost_usd AS numeric(14, 6)), lease_holder = NULL, lease_expire_time = NULL,
        end_time = clock_timestamp(), update_time = clock_timestamp(), version = r.version + 1
    FROM unnest(:ids, :states, :sessions, :results, :outputs, :reasons, :messages, :input_tokens, :output_tokens,
                :cache_read_tokens, :cache_write_tokens, :costs)
        AS w(id, state, session_id, result, output, reason, message, input_tokens, output_tokens,
             cache_read_tokens, cache_write_tokens, cost_usd)
    WHERE r.id = w.id AND r.end_time IS NULL
    RETURNING r.id, r.organization_id, r.user_id, r.task_id, r.schedule_id, r.state, r.failure_reason,
        r.failure_message, r.attempt, r.session_id, r.input_tokens, r.output_tokens, r.cache_read_tokens,
        r.cache_write_tokens, r.cost_usd, r.start_time, r.end_time
    """
).bindparams(
    sa.bindparam("ids", type_=_IDS),
    sa.bindparam("sessions", type_=_IDS),
    *(sa.bindparam(name, type_=_TEXTS) for name in ("states", "results", "outputs", "reasons", "messages")),
    *(sa.bindparam(name, type_=ARRAY(sa.BigInteger())) for name in TOKENS),
    sa.bindparam("costs", type_=ARRAY(sa.Double())),
)

_PAUSE = sa.text(
    """
    UPDATE scheduler.schedules AS s
    SET state = 'PAUSED', note = w.note, next_fire_time = NULL, next_due_time = NULL,
        version = s.version + 1, update_time = clock_timestamp()
    FROM unnest(:ids, :notes) AS w(id, note)
    WHERE s.id = w.id AND s.state = 'ACTIVE' AND s.pause_on_failure
    """
).bindparams(sa.bindparam("ids", type_=_IDS), sa.bindparam("notes", type_=_TEXTS))

# Of schedules with nothing held back, which are nearly all, no run is read.
_OPEN = sa.text(
    """
    SELECT r.id, r.schedule_id, r.state, coalesce(b.overlap_policy, s.overlap_policy) AS policy
    FROM scheduler.schedules AS s JOIN scheduler.runs AS r ON r.schedule_id = s.id AND r.end_time IS NULL
    LEFT JOIN scheduler.backfills AS b ON b.id = r.backfill_id
    WHERE s.id IN (SELECT schedule_id FROM scheduler.runs WHERE schedule_id = ANY(:schedules) AND state = 'PENDING')
    ORDER BY r.schedule_id, r.id
    """
).bindparams(sa.bindparam("schedules", type_=_IDS))

_PROMOTE = sa.text(
    """
    UPDATE scheduler.runs AS r
    SET state = 'QUEUED', available_time = clock_timestamp(), update_time = clock_timestamp(), version = r.version + 1
    WHERE r.id = ANY(:ids) AND r.state = 'PENDING' RETURNING r.organization_id
    """
).bindparams(sa.bindparam("ids", type_=_IDS))

_SUPERSEDE = sa.text(
    """
    UPDATE scheduler.runs AS r
    SET state = 'SKIPPED', skip_reason = 'SUPERSEDED', end_time = clock_timestamp(), update_time = clock_timestamp(),
        version = r.version + 1
    WHERE r.id = ANY(:ids) AND r.state = 'PENDING' RETURNING r.id
    """
).bindparams(sa.bindparam("ids", type_=_IDS))

_OF_DELETED = sa.text(
    f"""
    SELECT r.id FROM scheduler.tasks AS t JOIN scheduler.runs AS r ON r.task_id = t.id
    WHERE t.delete_time IS NOT NULL AND r.end_time IS NULL AND r.state IN ('QUEUED', 'PENDING')
    LIMIT {AT_ONCE} FOR NO KEY UPDATE OF r SKIP LOCKED
    """  # noqa: S608  nothing of it comes from outside
)

_FORGOTTEN = sa.text(
    """
    SELECT s.id FROM scheduler.schedules AS s
    WHERE s.id IN (SELECT schedule_id FROM scheduler.runs WHERE state = 'PENDING')
        AND NOT EXISTS (SELECT FROM scheduler.runs AS r WHERE r.schedule_id = s.id AND r.end_time IS NULL
                            AND r.state IN ('QUEUED', 'RUNNING'))
    ORDER BY s.id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
    """
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends.

    Attributes:
        run_id: The run.
        state: Its last state.
        session_id: The session of its last attempt; None leaves what is there.
        result: What it came to.
        structured_output_json: The same where a schema was asked for.
        failure: Why it ended badly.
        usage: What is to be added to what it has used.
        cost_usd: What is to be added to what it has cost.
    """

    run_id: UUID
    state: RunState
    session_id: UUID | None = None
    result: str | None = None
    structured_output_json: str = ""
    failure: Failure | None = None
    usage: Usage = _NOTHING_USED
    cost_usd: float = 0.0


async def lock_schedules(connection: AsyncConnection, run_ids: Collection[UUID]) -> None:
    """Locks the schedules of runs that may end in this transaction; none of the runs may be locked yet.

    Args:
        connection: Any transaction of the schema.
        run_ids: The runs; those without a schedule have nothing to lock.
    """
    if run_ids:
        await connection.execute(_LOCK_SCHEDULES, {"runs": list(run_ids)})


async def lock_free_schedules(connection: AsyncConnection, run_ids: Collection[UUID]) -> frozenset[UUID]:
    """Does as `lock_schedules` without waiting: schedules that somebody else has locked are left out.

    Args:
        connection: Any transaction of the schema.
        run_ids: The runs.

    Returns:
        The runs whose schedule was not had: they may not end in this transaction.
    """
    if not run_ids:
        return frozenset()
    return frozenset((await connection.execute(_LOCK_FREE_SCHEDULES, {"runs": list(run_ids)})).scalars())


async def end(connection: AsyncConnection, endings: Sequence[Ending]) -> list[EndedRun]:
    """Ends runs, and does what follows from it; those that are over already are left alone.

    Args:
        connection: A transaction that has locked their schedules, then the runs.
        endings: How they end, each run once.

    Returns:
        The runs that this call has ended.
    """
    if not endings:
        return []
    rows = await connection.execute(
        _END,
        {
            "ids": [ending.run_id for ending in endings],
            "states": [ending.state.value for ending in endings],
            "sessions": [ending.session_id for ending in endings],
            "results": [ending.result for ending in endings],
            "outputs": [ending.structured_output_json for ending in endings],
            "reasons": [ending.failure and ending.failure.reason for ending in endings],
            "messages": [ending.failure and ending.failure.message for ending in endings],
            **{name: [getattr(ending.usage, name) for ending in endings] for name in TOKENS},
            "costs": [ending.cost_usd for ending in endings],
        },
    )
    ended = [ended_of(row) for row in rows]
    await settle(connection, ended)
    return ended


async def supersede(connection: AsyncConnection, run_ids: Collection[UUID]) -> set[UUID]:
    """Skips runs that are held back, since a later fire takes their place; nobody is told.

    Args:
        connection: A transaction that has locked their schedules.
        run_ids: The runs; those that are not held back any more, or over, are left alone.

    Returns:
        The runs that this call has skipped.
    """
    if not run_ids:
        return set()
    return set((await connection.execute(_SUPERSEDE, {"ids": list(run_ids)})).scalars())


async def settle(connection: AsyncConnection, ended: Sequence[EndedRun]) -> None:
    """Does what follows from the end of runs: tells of it, and lets their schedules go on.

    Args:
        connection: The transaction that has written their last state; it holds the locks that `end` asks for.
        ended: The runs.
    """
    after_commit(connection, partial(_count, Counter(run.state for run in ended)))
    await facts.add_ended(connection, ended)
    await webhooks.enqueue(connection, [run.run_id for run in ended])
    of_schedules = [(run.schedule_id, run) for run in ended if run.schedule_id is not None]
    if not of_schedules:
        return
    # Of several that failed at once the last one is named.
    notes = {schedule_id: note for schedule_id, run in of_schedules if (note := run.pause_note) is not None}
    if notes:
        await connection.execute(_PAUSE, {"ids": list(notes), "notes": list(notes.values())})
    await promote_held_back(connection, {schedule_id for schedule_id, _ in of_schedules})


async def promote_held_back(connection: AsyncConnection, schedule_ids: Iterable[UUID]) -> int:
    """Queues the runs that their schedules have held back and need not any longer (`domain.overlap.promote`).

    A schedule that is paused lets go what it has held back as any other does: pausing keeps new fires from being made.

    Args:
        connection: A transaction that has locked the schedules.
        schedule_ids: The schedules.

    Returns:
        How many.
    """
    open_runs: defaultdict[UUID, list[UUID]] = defaultdict(list)
    held_back: defaultdict[UUID, list[tuple[UUID, OverlapPolicy]]] = defaultdict(list)
    for row in await connection.execute(_OPEN, {"schedules": list(schedule_ids)}):
        if RunState(row.state).open:
            open_runs[row.schedule_id].append(row.id)
        else:
            held_back[row.schedule_id].append((row.id, OverlapPolicy(row.policy)))
    ids = [run for schedule_id, runs in held_back.items() for run in promote(open_runs[schedule_id], runs)]
    if not ids:
        return 0
    return await facts.add_queued_of_each(
        connection, (await connection.execute(_PROMOTE, {"ids": ids})).scalars()
    )


async def end_of_deleted_tasks(connection: AsyncConnection) -> int:
    """Ends runs that wait and whose task was deleted, a bounded number; returns how many.

    Their schedules are gone with the task, so there are none to lock. Those that somebody holds are left for the next
    look.

    Args:
        connection: A system transaction.
    """
    found = list((await connection.execute(_OF_DELETED)).scalars())
    await end(connection, [Ending(run_id, RunState.CANCELLED) for run_id in found])
    return len(found)


async def promote_forgotten(connection: AsyncConnection) -> int:
    """Queues runs that are held back behind nothing: whatever was to let them go did not.

    Schedules that are locked are skipped: whoever holds them sees to it. A bounded number at once.

    Args:
        connection: A system transaction that has locked nothing.

    Returns:
        How many.
    """
    found = list((await connection.execute(_FORGOTTEN)).scalars())
    return await promote_held_back(connection, found) if found else 0


def ended_of(row: Any) -> EndedRun:
    """Reads a row of `runs` that is over."""
    return EndedRun(
        run_id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        task_id=row.task_id,
        schedule_id=row.schedule_id,
        state=RunState(row.state),
        failure=failure_of(row),
        attempts=row.attempt,
        session_id=row.session_id,
        usage=usage_of(row),
        cost_usd=float(row.cost_usd),
        start_time=row.start_time,
        end_time=row.end_time,
    )


def _count(ended: Mapping[RunState, int]) -> None:
    for state, number in ended.items():
        ENDED.labels(state.value).inc(number)
