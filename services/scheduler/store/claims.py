"""Claims: which worker holds which run. Expiry is judged by PostgreSQL's clock alone.

Every write of a worker names the epoch under which it claimed (the fencing token; Kleppmann, "How to do distributed
locking", 2016) and touches nothing once another worker has the run. Whoever locks a schedule and a run locks the
schedule first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.domain.runs import Claim, LeaseLost, Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store.run_rows import TOKENS, claim_of, failure_columns
from services.scheduler.store.tables import run_attempts, runs
from services.scheduler.store.webhooks import enqueue
from services.scheduler.usecases.worker.ports import Renewal

LEASE_LIFE: Final = timedelta(seconds=5)
"""How long a lease lives without being renewed."""
_NOW = sa.func.clock_timestamp()
_PARAMETERS = (
    sa.bindparam("life", type_=sa.Interval),
    sa.bindparam("places", type_=sa.Integer),
    sa.bindparam("holder", type_=sa.Text),
)
_SECONDS_LEFT = "extract(epoch FROM r.start_time + r.run_timeout - clock_timestamp()) AS seconds_left"

# Workers claim one after another: two that count at the same time would both find a task's last place free.
_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(1094797636, hashtext('scheduler.runs'))")

_TAKE_OVER = sa.text(
    f"""
    WITH lost AS (
        SELECT id FROM scheduler.runs WHERE state = 'RUNNING' AND lease_expire_time <= clock_timestamp()
        ORDER BY lease_expire_time LIMIT :places FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE scheduler.runs AS r
        SET epoch = r.epoch + 1, lease_holder = :holder, lease_expire_time = clock_timestamp() + :life
        FROM lost WHERE r.id = lost.id RETURNING r.*
    )
    SELECT r.*, a.session_id AS attempt_session_id, a.turn_id AS attempt_turn_id, {_SECONDS_LEFT}
    FROM taken AS r JOIN scheduler.run_attempts AS a ON a.run_id = r.id AND a.number = r.attempt
    """  # noqa: S608  nothing of it comes from outside
).bindparams(*_PARAMETERS)

# The organizations that have something queued are found by one step into the index for each (a loose index scan), and
# of each no more is looked at than could be taken. A run's place is counted behind those that its organization has
# under way: of equal priority, whoever has least gets the next.
_TAKE = sa.text(
    f"""
    WITH RECURSIVE organizations AS (
        (SELECT organization_id FROM scheduler.runs WHERE state = 'QUEUED' ORDER BY organization_id LIMIT 1)
        UNION ALL
        SELECT (SELECT r.organization_id FROM scheduler.runs AS r
                WHERE r.state = 'QUEUED' AND r.organization_id > o.organization_id
                ORDER BY r.organization_id LIMIT 1)
        FROM organizations AS o WHERE o.organization_id IS NOT NULL
    ), under_way AS (
        SELECT organization_id, task_id, count(*) AS number FROM scheduler.runs WHERE state = 'RUNNING'
        GROUP BY organization_id, task_id
    ), busy AS (
        SELECT organization_id, sum(number) AS number FROM under_way GROUP BY organization_id
    ), full_tasks AS (
        SELECT t.id FROM under_way AS u JOIN scheduler.tasks AS t ON t.id = u.task_id
        WHERE t.max_concurrent_runs > 0 AND u.number >= t.max_concurrent_runs
    ), waiting AS (
        SELECT w.*, t.max_concurrent_runs, coalesce(busy.number, 0) + row_number() OVER (
                PARTITION BY o.organization_id ORDER BY w.priority DESC, w.available_time, w.id) AS place,
            coalesce(mine.number, 0) + row_number() OVER (
                PARTITION BY w.task_id ORDER BY w.priority DESC, w.available_time, w.id) AS of_task
        FROM organizations AS o
        CROSS JOIN LATERAL (
            SELECT r.id, r.task_id, r.priority, r.available_time FROM scheduler.runs AS r
            WHERE r.state = 'QUEUED' AND r.organization_id = o.organization_id
                AND r.available_time <= clock_timestamp()
                AND r.task_id NOT IN (SELECT id FROM full_tasks)
            ORDER BY r.priority DESC, r.available_time, r.id LIMIT :places
        ) AS w
        JOIN scheduler.tasks AS t ON t.id = w.task_id
        LEFT JOIN busy ON busy.organization_id = o.organization_id
        LEFT JOIN under_way AS mine ON mine.task_id = w.task_id
    ), chosen AS (
        SELECT r.id FROM scheduler.runs AS r
        WHERE r.state = 'QUEUED' AND r.id = ANY(ARRAY(
            SELECT id FROM waiting WHERE max_concurrent_runs = 0 OR of_task <= max_concurrent_runs
            ORDER BY priority DESC, place, available_time, id LIMIT :places))
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE scheduler.runs AS r
        SET state = 'RUNNING', attempt = r.attempt + 1, epoch = r.epoch + 1, lease_holder = :holder,
            lease_expire_time = clock_timestamp() + :life, start_time = coalesce(r.start_time, clock_timestamp())
        WHERE r.id = ANY(ARRAY(SELECT id FROM chosen)) RETURNING r.*
    ), begun AS (
        INSERT INTO scheduler.run_attempts (run_id, number, organization_id, user_id, state)
        SELECT id, attempt, organization_id, user_id, 'RUNNING' FROM taken
    )
    SELECT r.*, CAST(NULL AS uuid) AS attempt_session_id, CAST(NULL AS uuid) AS attempt_turn_id, {_SECONDS_LEFT}
    FROM taken AS r
    """  # noqa: S608  nothing of it comes from outside
).bindparams(*_PARAMETERS)


async def claim(
    connection: AsyncConnection, holder: str, limit: int, life: timedelta = LEASE_LIFE
) -> list[Claim]:
    """Takes runs: first those whose worker died, then those that wait, by priority, fair between organizations.

    Args:
        connection: A system transaction.
        holder: The worker's own id, new at each start.
        limit: How many at most.
        life: How long the lease lives without being renewed.

    Returns:
        Fewer than `limit` may be had although more wait, where tasks bound how many of their runs go at once.
    """
    values = {"holder": holder, "places": limit, "life": life}
    rows = await connection.execute(_TAKE_OVER, values)
    found = [claim_of(row, taken_over=True) for row in rows]
    if len(found) < limit:
        await connection.execute(_ONE_AT_A_TIME)
        rows = await connection.execute(_TAKE, {**values, "places": limit - len(found)})
        found += [claim_of(row, taken_over=False) for row in rows]
    return found


async def renew(connection: AsyncConnection, held: Sequence[Claim], life: timedelta = LEASE_LIFE) -> Renewal:
    """Renews leases that are still their holder's, even one that has run out but was not taken.

    Args:
        connection: A system transaction, on a connection of its own so that no queue delays it.
        held: Claims of one holder.
        life: How long a lease lives without being renewed.
    """
    if not held:
        return Renewal()
    epochs = {claim.run_id: claim.epoch for claim in held}
    mine = sa.and_(
        runs.c.id.in_(epochs), runs.c.lease_holder == held[0].holder, runs.c.state == RunState.RUNNING.value
    )
    # A run that is locked at this moment is left for the next time.
    free = sa.select(runs.c.id).where(mine).with_for_update(skip_locked=True)
    await connection.execute(
        sa.update(runs).where(runs.c.id.in_(free.scalar_subquery())).values(lease_expire_time=_NOW + life)
    )
    rows = (
        await connection.execute(sa.select(runs.c.id, runs.c.epoch, runs.c.cancel_time).where(mine))
    ).all()
    kept = {row.id for row in rows if row.epoch == epochs[row.id]}
    return Renewal(
        lost=frozenset(epochs.keys() - kept),
        cancelled=frozenset(row.id for row in rows if row.id in kept and row.cancel_time is not None),
    )


async def note_session(connection: AsyncConnection, claim: Claim, session_id: UUID) -> None:
    """Records the session of an attempt. Raises: LeaseLost."""
    await _fenced(connection, claim, {"session_id": session_id})
    await _on_attempt(connection, claim, {"session_id": session_id})


async def note_turn(connection: AsyncConnection, claim: Claim, turn_id: UUID) -> None:
    """Records the turn of an attempt. Raises: LeaseLost."""
    await _fenced(connection, claim, {"attempt": claim.attempt})
    await _on_attempt(connection, claim, {"turn_id": turn_id})


async def end(
    connection: AsyncConnection, claim: Claim, outcome: Outcome, pause: timedelta | None
) -> RunState:
    """Records how an attempt ended, and what becomes of its run.

    Args:
        connection: A system transaction.
        claim: The run.
        outcome: How its attempt ended.
        pause: How long to wait before the next attempt; None if there is to be none.

    Returns:
        The run's state: QUEUED if another attempt follows; CANCELLED if one would and somebody has asked for the end.
        A run whose time is up before the pause is over ends as its attempt did.

    Raises:
        LeaseLost: Another worker has the run, or it is gone.
    """
    row = (
        await connection.execute(
            sa.select(
                runs.c.cancel_time,
                # No pause: nothing to compare.
                (
                    _NOW + sa.cast(pause or timedelta(), sa.Interval) < runs.c.start_time + runs.c.run_timeout
                ).label("in_time"),
            )
            .where(*_held(claim))
            .with_for_update()
        )
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"epoch {claim.epoch}")
    spent = {name: getattr(outcome.usage, name) for name in TOKENS}
    await _on_attempt(
        connection,
        claim,
        {
            **spent,
            **failure_columns(outcome),
            "state": outcome.state.value,
            "cost_usd": outcome.cost_usd,
            "end_time": _NOW,
        },
    )
    values: dict[str, Any] = {
        **{name: runs.c[name] + value for name, value in spent.items()},
        **failure_columns(outcome),
        "cost_usd": runs.c.cost_usd + sa.cast(outcome.cost_usd, runs.c.cost_usd.type),
        "lease_holder": None,
        "lease_expire_time": None,
    }
    if pause is not None and row.in_time and row.cancel_time is None:
        state = RunState.QUEUED
        values |= {"available_time": _NOW + pause}
    else:
        state = RunState.CANCELLED if pause is not None and row.cancel_time is not None else outcome.state
        values |= {
            "result_text": outcome.result,
            "structured_output_json": outcome.structured_output_json,
            "end_time": _NOW,
        }
    await _fenced(connection, claim, {**values, "state": state.value})
    await enqueue(connection, [claim.run_id])
    return state


async def release(connection: AsyncConnection, held: Sequence[Claim]) -> None:
    """Gives leases back, so that another worker goes on at once; those that are lost already are left alone."""
    for claim in held:
        await connection.execute(sa.update(runs).where(*_held(claim)).values(lease_expire_time=_NOW))


def _held(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        runs.c.id == claim.run_id,
        runs.c.epoch == claim.epoch,
        runs.c.lease_holder == claim.holder,
        runs.c.state == RunState.RUNNING.value,
    )


async def _fenced(connection: AsyncConnection, claim: Claim, values: dict[str, Any]) -> None:
    done = await connection.execute(sa.update(runs).where(*_held(claim)).values(**values, update_time=_NOW))
    if done.rowcount == 0:
        raise LeaseLost(f"epoch {claim.epoch}")


async def _on_attempt(connection: AsyncConnection, claim: Claim, values: dict[str, Any]) -> None:
    """In the transaction in which the run was found to be the worker's."""
    await connection.execute(
        sa.update(run_attempts)
        .where(run_attempts.c.run_id == claim.run_id, run_attempts.c.number == claim.attempt)
        .values(**values)
    )
