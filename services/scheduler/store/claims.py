"""Claims: which worker holds which run. Expiry is judged by PostgreSQL's clock alone.

Every write of a worker names the epoch under which it claimed (the fencing token; Kleppmann, "How to do distributed
locking", 2016) and touches nothing once another worker has the run. What it records of many runs goes in one
transaction. Whoever locks schedules and runs locks the schedules first, and of each kind several by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.domain.runs import (
    MOST_LATE_TAKE_OVERS,
    MOST_TAKE_OVERS,
    Claim,
    given_up,
)
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, facts, recording
from services.scheduler.store.claimable import MAY_BE_TAKEN, PER_USER, WITH_PLACES
from services.scheduler.store.recording import FENCES, fences
from services.scheduler.store.run_rows import claims_of
from services.scheduler.store.tables import runs
from services.scheduler.usecases.worker.ports import Claimed, Progress, Renewal

LEASE_LIFE: Final = timedelta(seconds=5)
"""How long a lease lives without being renewed."""
MOST_IDLE: Final = timedelta(seconds=1)
"""How long a worker may keep all others from claiming while it stands still: PostgreSQL ends its connection then."""
_SPARE: Final = 20
"""How many runs of an organization are looked at beyond those that could be taken, where all of these are locked."""
_MOST_WAIT: Final = "2s"
"""How long to wait until others have claimed: longer than one that stands still has."""
_NOW = sa.func.clock_timestamp()
_PARAMETERS = (
    sa.bindparam("life", type_=sa.Interval),
    sa.bindparam("places", type_=sa.Integer),
    sa.bindparam("holder", type_=sa.Text),
)
_SECONDS_LEFT = "extract(epoch FROM r.start_time + r.run_timeout - clock_timestamp()) AS seconds_left"

# Workers claim one after another: two that count at the same time would both find the last place of a task or a user
# free. Where nothing is limited they would choose the same runs, and the second go without; and whether a task is
# limited may change at any moment. It costs a claim, of however many runs, one round trip. A worker that stands still
# before its commit is ended by PostgreSQL, its claim with it: both settings hold from here to the transaction's end.
_ONE_AT_A_TIME = sa.text(
    f"""
    SELECT set_config('idle_in_transaction_session_timeout', :most_idle, true),
        set_config('lock_timeout', '{_MOST_WAIT}', true),
        pg_advisory_xact_lock(1094797636, hashtext('scheduler.runs'))
    """
)

_LOST = "r.state = 'RUNNING' AND r.lease_expire_time <= clock_timestamp()"
# Whoever gives a run back leaves no holder: that is no loss.
_HOPELESS = f"""
    r.lease_holder IS NOT NULL AND r.take_overs >= CASE WHEN clock_timestamp() < r.start_time + r.run_timeout
        THEN {MOST_TAKE_OVERS} ELSE {MOST_LATE_TAKE_OVERS} END
"""


def _taking_over(which: str) -> sa.TextClause:
    return sa.text(
        f"""
        WITH lost AS (
            SELECT r.id FROM scheduler.runs AS r WHERE {_LOST} AND {which}
            ORDER BY r.lease_expire_time LIMIT :places FOR UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE scheduler.runs AS r
            SET epoch = r.epoch + 1, lease_holder = :holder, lease_expire_time = clock_timestamp() + :life,
                take_overs = r.take_overs + CASE WHEN r.lease_holder IS NULL THEN 0 ELSE 1 END,
                update_time = clock_timestamp(), version = r.version + 1
            FROM lost WHERE r.id = lost.id RETURNING r.*
        )
        SELECT r.*, a.session_id AS attempt_session_id, a.turn_id AS attempt_turn_id, {_SECONDS_LEFT}
        FROM taken AS r JOIN scheduler.run_attempts AS a ON a.run_id = r.id AND a.number = r.attempt
        """  # noqa: S608  nothing of it comes from outside
    ).bindparams(*_PARAMETERS)


_TAKE_OVER = _taking_over(f"NOT ({_HOPELESS})")
_TAKE_LAST = _taking_over(f"r.id = :run_id AND {_HOPELESS}").bindparams(sa.bindparam("run_id", type_=sa.UUID))
_FIND_HOPELESS = sa.text(
    f"SELECT r.id FROM scheduler.runs AS r WHERE {_LOST} AND {_HOPELESS} LIMIT 100"  # noqa: S608  as above
)

# The organizations that have something queued are found by one step into the index for each (a loose index scan), and
# of each no more is looked at than could be taken, but where that brings nothing (`_SPARE`). A run's place is counted
# behind those that its organization has under way: of equal priority, whoever has least gets the next. Rows are locked
# one by one in that order until there are enough: one that somebody else has locked takes nobody's place, and those for
# which task or user have a place only then come last. So the limits are counted once more among those that were had.
_TAKE = sa.text(
    f"""
    WITH RECURSIVE organizations AS (
        (SELECT organization_id FROM scheduler.runs WHERE state = 'QUEUED' ORDER BY organization_id LIMIT 1)
        UNION ALL
        SELECT (SELECT r.organization_id FROM scheduler.runs AS r
                WHERE r.state = 'QUEUED' AND r.organization_id > o.organization_id
                ORDER BY r.organization_id LIMIT 1)
        FROM organizations AS o WHERE o.organization_id IS NOT NULL
    ), {WITH_PLACES}, of_organizations AS (
        SELECT organization_id, sum(number) AS number FROM under_way GROUP BY organization_id
    ), waiting AS (
        SELECT w.*, coalesce(of_organizations.number, 0) + row_number() OVER (
                PARTITION BY o.organization_id ORDER BY w.priority DESC, w.available_time, w.id) AS place,
            CASE WHEN t.max_concurrent_runs > 0 THEN t.max_concurrent_runs - coalesce(of_tasks.number, 0) END
                AS task_places,
            CASE WHEN :per_user > 0 THEN :per_user - coalesce(of_users.number, 0) END AS user_places
        FROM organizations AS o
        CROSS JOIN LATERAL (
            SELECT r.id, r.user_id, r.task_id, r.priority, r.available_time FROM scheduler.runs AS r
            WHERE r.organization_id = o.organization_id AND {MAY_BE_TAKEN}
            ORDER BY r.priority DESC, r.available_time, r.id LIMIT :places + :spare
        ) AS w
        JOIN scheduler.tasks AS t ON t.id = w.task_id AND t.delete_time IS NULL
        LEFT JOIN of_organizations ON of_organizations.organization_id = o.organization_id
        LEFT JOIN of_tasks ON of_tasks.task_id = w.task_id
        LEFT JOIN of_users ON of_users.user_id = w.user_id
    ), ranked AS (
        SELECT *, (task_places IS NULL OR task_places >= row_number() OVER (
                PARTITION BY task_id ORDER BY priority DESC, available_time, id))
            AND (user_places IS NULL OR user_places >= row_number() OVER (
                PARTITION BY user_id ORDER BY priority DESC, available_time, id)) AS within
        FROM waiting
    ), best AS (
        SELECT *, row_number() OVER (ORDER BY within DESC, priority DESC, place, available_time, id) AS nth
        FROM ranked ORDER BY nth LIMIT 2 * :places + 10 * :spare
    ), locked AS (
        SELECT r.id FROM scheduler.runs AS r JOIN best ON best.id = r.id
        WHERE r.state = 'QUEUED' AND r.id = ANY(ARRAY(SELECT id FROM best))
        ORDER BY best.nth LIMIT :places FOR UPDATE OF r SKIP LOCKED
    ), chosen AS (
        SELECT id FROM (
            SELECT w.id, w.task_places, w.user_places, row_number() OVER (
                    PARTITION BY w.task_id ORDER BY w.priority DESC, w.available_time, w.id) AS of_task,
                row_number() OVER (
                    PARTITION BY w.user_id ORDER BY w.priority DESC, w.available_time, w.id) AS of_user
            FROM best AS w WHERE w.id IN (SELECT id FROM locked)
        ) AS had
        WHERE (task_places IS NULL OR of_task <= task_places) AND (user_places IS NULL OR of_user <= user_places)
    ), taken AS (
        UPDATE scheduler.runs AS r
        SET state = 'RUNNING', attempt = r.attempt + 1, epoch = r.epoch + 1, lease_holder = :holder,
            lease_expire_time = clock_timestamp() + :life, take_overs = 0,
            start_time = coalesce(r.start_time, clock_timestamp()), update_time = clock_timestamp(),
            version = r.version + 1
        WHERE r.id = ANY(ARRAY(SELECT id FROM chosen)) RETURNING r.*
    ), begun AS (
        INSERT INTO scheduler.run_attempts (run_id, number, organization_id, user_id, state)
        SELECT id, attempt, organization_id, user_id, 'RUNNING' FROM taken
    )
    SELECT r.*, CAST(NULL AS uuid) AS attempt_session_id, CAST(NULL AS uuid) AS attempt_turn_id, {_SECONDS_LEFT}
    FROM taken AS r
    """  # noqa: S608  nothing of it comes from outside
).bindparams(*_PARAMETERS, PER_USER, sa.bindparam("spare", type_=sa.Integer))

# Since the transaction began: what became claimable after that may not have been seen, and counts as claimable at once.
_NEXT = sa.text(
    """
    SELECT extract(epoch FROM min(available_time) - clock_timestamp()) AS seconds,
        EXISTS (SELECT FROM scheduler.runs WHERE state = 'QUEUED' AND available_time <= statement_timestamp()) AS waits
    FROM scheduler.runs WHERE state = 'QUEUED' AND available_time > transaction_timestamp()
    """
)

_RELEASE = sa.text(
    """
    WITH held AS (
        SELECT r.id FROM unnest(:ids, :epochs, :holders) AS w(id, epoch, holder)
        JOIN scheduler.runs AS r
            ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
        ORDER BY r.id FOR NO KEY UPDATE OF r
    )
    UPDATE scheduler.runs SET lease_holder = NULL, lease_expire_time = clock_timestamp()
    WHERE id IN (SELECT id FROM held) RETURNING organization_id
    """
).bindparams(*FENCES)


async def claim(
    connection: AsyncConnection,
    holder: str,
    limit: int,
    *,
    per_user: int = 0,
    life: timedelta = LEASE_LIFE,
    most_idle: timedelta = MOST_IDLE,
) -> tuple[Claimed, list[Claim]]:
    """Takes runs whose worker died; if there are none those that wait, by priority, fair between organizations.

    Not both at once: what is taken over waits for no other worker's claim. Dying before the commit leaves all as it
    was; standing still there ends the connection after `most_idle`, and the claim with it.

    Args:
        connection: A system transaction.
        holder: The worker's own id, new at each start.
        limit: How many at most.
        per_user: How many of one user may be under way at once, in all workers; 0 for no limit.
        life: How long the lease lives without being renewed.
        most_idle: See `MOST_IDLE`.

    Returns:
        What was claimed; fewer than `limit` may be had although more wait, where tasks or users have no more places.
        And the runs among them that cannot be read, to be ended once the claim is committed: of a process that dies
        before that the leases run out, and whoever takes the runs over ends them.
    """
    values: dict[str, Any] = {"holder": holder, "places": limit, "life": life}
    rows = await connection.execute(_TAKE_OVER, values)
    found, unreadable = claims_of(rows, taken_over=True)
    if found or unreadable:
        return Claimed(found, None if found else 0.0), unreadable
    await connection.execute(_ONE_AT_A_TIME, {"most_idle": f"{most_idle / timedelta(milliseconds=1):.0f}"})
    values |= {"per_user": per_user, "spare": 0}
    found, unreadable = claims_of(await connection.execute(_TAKE, values), taken_over=False)
    if not found and not unreadable:
        outlook = (await connection.execute(_NEXT)).one()
        if outlook.waits:
            rows = await connection.execute(_TAKE, values | {"spare": _SPARE})
            found, unreadable = claims_of(rows, taken_over=False)
        if not found and not unreadable:
            return Claimed([], None if outlook.seconds is None else max(0.0, float(outlook.seconds))), []
    return Claimed(found, None if found else 0.0), unreadable


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


async def hopeless(connection: AsyncConnection) -> list[UUID]:
    """The runs, a bounded number, that nobody takes over any more, although no worker has them: see `give_up`."""
    return list((await connection.execute(_FIND_HOPELESS)).scalars())


async def give_up(connection: AsyncConnection, run_id: UUID, holder: str) -> Claim | None:
    """Ends a run that was taken over as often as may be, with as little as can be said of it (`domain.runs.given_up`).

    Locks its schedule, then itself, and takes it over, so that whoever had it writes nothing more. Dying before the
    commit leaves it as it was, to be found by the next look.

    Args:
        connection: A system transaction that has locked nothing.
        run_id: The run.
        holder: Whoever asks.

    Returns:
        The run with its turn, which may be at work; None where it is not, or not any more, one of those, or is locked.
    """
    await endings.lock_schedules(connection, [run_id])
    values = {"run_id": run_id, "holder": holder, "places": 1, "life": LEASE_LIFE}
    row = (await connection.execute(_TAKE_LAST, values)).one_or_none()
    if row is None:
        return None
    found, unreadable = claims_of([row], taken_over=True)
    (claim,) = found or unreadable
    await recording.record(connection, [Progress(claim, claim.session_id, claim.turn_id, given_up(claim))])
    return claim


async def release(connection: AsyncConnection, held: Sequence[Claim]) -> None:
    """Gives leases back, and tells of it, so that another worker goes on at once; those that are lost stay."""
    released = await connection.execute(_RELEASE, fences(held))
    await facts.add_queued_of_each(connection, released.scalars())
