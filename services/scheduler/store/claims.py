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
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.domain.runs import Claim
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, facts
from services.scheduler.store.endings import Ending
from services.scheduler.store.run_rows import TOKENS, claims_of
from services.scheduler.store.tables import runs
from services.scheduler.usecases.worker.ports import NOT_YET, Claimed, Progress, Recorded, Renewal

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

_TAKE_OVER = sa.text(
    f"""
    WITH lost AS (
        SELECT id FROM scheduler.runs WHERE state = 'RUNNING' AND lease_expire_time <= clock_timestamp()
        ORDER BY lease_expire_time LIMIT :places FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE scheduler.runs AS r
        SET epoch = r.epoch + 1, lease_holder = :holder, lease_expire_time = clock_timestamp() + :life,
            update_time = clock_timestamp(), version = r.version + 1
        FROM lost WHERE r.id = lost.id RETURNING r.*
    )
    SELECT r.*, a.session_id AS attempt_session_id, a.turn_id AS attempt_turn_id, {_SECONDS_LEFT}
    FROM taken AS r JOIN scheduler.run_attempts AS a ON a.run_id = r.id AND a.number = r.attempt
    """  # noqa: S608  nothing of it comes from outside
).bindparams(*_PARAMETERS)

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
    ), under_way AS (
        SELECT organization_id, user_id, task_id, count(*) AS number FROM scheduler.runs WHERE state = 'RUNNING'
        GROUP BY organization_id, user_id, task_id
    ), of_organizations AS (
        SELECT organization_id, sum(number) AS number FROM under_way GROUP BY organization_id
    ), of_users AS (
        SELECT user_id, sum(number) AS number FROM under_way WHERE :per_user > 0 GROUP BY user_id
    ), of_tasks AS (
        SELECT task_id, sum(number) AS number FROM under_way GROUP BY task_id
    ), full_tasks AS (
        SELECT t.id FROM of_tasks AS u JOIN scheduler.tasks AS t ON t.id = u.task_id
        WHERE t.max_concurrent_runs > 0 AND u.number >= t.max_concurrent_runs
    ), waiting AS (
        SELECT w.*, coalesce(of_organizations.number, 0) + row_number() OVER (
                PARTITION BY o.organization_id ORDER BY w.priority DESC, w.available_time, w.id) AS place,
            CASE WHEN t.max_concurrent_runs > 0 THEN t.max_concurrent_runs - coalesce(of_tasks.number, 0) END
                AS task_places,
            CASE WHEN :per_user > 0 THEN :per_user - coalesce(of_users.number, 0) END AS user_places
        FROM organizations AS o
        CROSS JOIN LATERAL (
            SELECT r.id, r.user_id, r.task_id, r.priority, r.available_time FROM scheduler.runs AS r
            WHERE r.state = 'QUEUED' AND r.organization_id = o.organization_id
                AND r.available_time <= clock_timestamp()
                AND r.task_id NOT IN (SELECT id FROM full_tasks)
                AND r.user_id NOT IN (SELECT user_id FROM of_users WHERE number >= :per_user)
            ORDER BY r.priority DESC, r.available_time, r.id LIMIT :places + :spare
        ) AS w
        JOIN scheduler.tasks AS t ON t.id = w.task_id
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
            lease_expire_time = clock_timestamp() + :life, start_time = coalesce(r.start_time, clock_timestamp()),
            update_time = clock_timestamp(), version = r.version + 1
        WHERE r.id = ANY(ARRAY(SELECT id FROM chosen)) RETURNING r.*
    ), begun AS (
        INSERT INTO scheduler.run_attempts (run_id, number, organization_id, user_id, state)
        SELECT id, attempt, organization_id, user_id, 'RUNNING' FROM taken
    )
    SELECT r.*, CAST(NULL AS uuid) AS attempt_session_id, CAST(NULL AS uuid) AS attempt_turn_id, {_SECONDS_LEFT}
    FROM taken AS r
    """  # noqa: S608  nothing of it comes from outside
).bindparams(*_PARAMETERS, *(sa.bindparam(name, type_=sa.Integer) for name in ("per_user", "spare")))

# Since the transaction began: what became claimable after that may not have been seen, and counts as claimable at once.
_NEXT = sa.text(
    """
    SELECT extract(epoch FROM min(available_time) - clock_timestamp()) AS seconds,
        EXISTS (SELECT FROM scheduler.runs WHERE state = 'QUEUED' AND available_time <= clock_timestamp()) AS waits
    FROM scheduler.runs WHERE state = 'QUEUED' AND available_time > transaction_timestamp()
    """
)

_IDS: Final = ARRAY(sa.UUID())
_NUMBERS: Final = ARRAY(sa.BigInteger())
_TEXTS: Final = ARRAY(sa.Text())
_FENCES: Final = (
    sa.bindparam("ids", type_=_IDS),
    sa.bindparam("epochs", type_=_NUMBERS),
    sa.bindparam("holders", type_=_TEXTS),
)

_LOCK_HELD = sa.text(
    """
    SELECT r.id, r.epoch, r.cancel_time IS NOT NULL AS cancelled,
        clock_timestamp() + w.pause < r.start_time + r.run_timeout AS in_time
    FROM unnest(:ids, :epochs, :holders, :pauses) AS w(id, epoch, holder, pause)
    JOIN scheduler.runs AS r
        ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
    """
).bindparams(*_FENCES, sa.bindparam("pauses", type_=ARRAY(sa.Interval())))

_STILL_HELD = sa.text(
    """
    SELECT r.id, r.epoch FROM unnest(:ids, :epochs, :holders) AS w(id, epoch, holder)
    JOIN scheduler.runs AS r
        ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
    """
).bindparams(*_FENCES)

_NOTE = sa.text(
    """
    WITH known AS (
        SELECT * FROM unnest(:ids, :attempts, :sessions, :turns) AS k(id, attempt, session_id, turn_id)
    ), noted AS (
        UPDATE scheduler.run_attempts AS a
        SET session_id = coalesce(k.session_id, a.session_id), turn_id = coalesce(k.turn_id, a.turn_id)
        FROM known AS k WHERE a.run_id = k.id AND a.number = k.attempt
    )
    UPDATE scheduler.runs AS r
    SET session_id = coalesce(k.session_id, r.session_id), update_time = clock_timestamp(), version = r.version + 1
    FROM known AS k WHERE r.id = k.id
    """
).bindparams(
    *(sa.bindparam(name, type_=_IDS) for name in ("ids", "sessions", "turns")),
    sa.bindparam("attempts", type_=_NUMBERS),
)

_END_ATTEMPTS = sa.text(
    """
    UPDATE scheduler.run_attempts AS a
    SET state = w.state, session_id = coalesce(w.session_id, a.session_id), turn_id = coalesce(w.turn_id, a.turn_id),
        failure_reason = w.reason, failure_message = w.message, input_tokens = w.input_tokens,
        output_tokens = w.output_tokens, cache_read_tokens = w.cache_read_tokens,
        cache_write_tokens = w.cache_write_tokens, cost_usd = CAST(w.cost_usd AS numeric(14, 6)),
        end_time = clock_timestamp()
    FROM unnest(:ids, :attempts, :states, :sessions, :turns, :reasons, :messages, :input_tokens, :output_tokens,
                :cache_read_tokens, :cache_write_tokens, :costs)
        AS w(id, attempt, state, session_id, turn_id, reason, message, input_tokens, output_tokens,
             cache_read_tokens, cache_write_tokens, cost_usd)
    WHERE a.run_id = w.id AND a.number = w.attempt
    """
).bindparams(
    *(sa.bindparam(name, type_=_IDS) for name in ("ids", "sessions", "turns")),
    *(sa.bindparam(name, type_=_NUMBERS) for name in ("attempts", *TOKENS)),
    *(sa.bindparam(name, type_=_TEXTS) for name in ("states", "reasons", "messages")),
    sa.bindparam("costs", type_=ARRAY(sa.Double())),
)

# What the attempt came to adds up in its run, as at an end.
_QUEUE_AGAIN = sa.text(
    """
    UPDATE scheduler.runs AS r
    SET state = 'QUEUED', available_time = clock_timestamp() + w.pause,
        session_id = coalesce(a.session_id, r.session_id),
        failure_reason = a.failure_reason, failure_message = a.failure_message,
        input_tokens = r.input_tokens + a.input_tokens, output_tokens = r.output_tokens + a.output_tokens,
        cache_read_tokens = r.cache_read_tokens + a.cache_read_tokens,
        cache_write_tokens = r.cache_write_tokens + a.cache_write_tokens, cost_usd = r.cost_usd + a.cost_usd,
        lease_holder = NULL, lease_expire_time = NULL, update_time = clock_timestamp(), version = r.version + 1
    FROM unnest(:ids, :pauses) AS w(id, pause), scheduler.run_attempts AS a
    WHERE r.id = w.id AND a.run_id = r.id AND a.number = r.attempt RETURNING r.organization_id
    """
).bindparams(sa.bindparam("ids", type_=_IDS), sa.bindparam("pauses", type_=ARRAY(sa.Interval())))

_RELEASE = sa.text(
    """
    WITH held AS (
        SELECT r.id FROM unnest(:ids, :epochs, :holders) AS w(id, epoch, holder)
        JOIN scheduler.runs AS r
            ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
        ORDER BY r.id FOR NO KEY UPDATE OF r
    )
    UPDATE scheduler.runs SET lease_expire_time = clock_timestamp() WHERE id IN (SELECT id FROM held)
    RETURNING organization_id
    """
).bindparams(*_FENCES)


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


async def record(connection: AsyncConnection, steps: Sequence[Progress]) -> list[Recorded]:
    """Records how far attempts have come, and what becomes of the runs of those that have ended.

    Locks the schedules of runs whose attempt has ended, then all runs that are still their holder's; the rest is
    written to those alone. It waits for no lock: of a process that stands still while it has a schedule, the runs of
    that schedule are waited for, and no others. Dying before the commit leaves every run as its lease says: whoever
    takes it over makes the same calls, and comes to the same end.

    Args:
        connection: A system transaction.
        steps: What is known, at most one for each claim.

    Returns:
        For each step the run's state now: QUEUED if another attempt follows; CANCELLED if one would and somebody has
        asked for the end. A run whose time is up before the pause is over ends as its attempt did. NOT_YET where
        somebody else has the run or its schedule locked, and None where another worker has the run, or it is gone.
    """
    over = [step for step in steps if step.outcome is not None]
    locked = await endings.lock_free_schedules(connection, [step.claim.run_id for step in over])
    free = [step for step in steps if step.outcome is None or step.claim.run_id not in locked]
    rows = await connection.execute(
        _LOCK_HELD, {**_fences([step.claim for step in free]), "pauses": [step.pause for step in free]}
    )
    held = {(row.id, row.epoch): row for row in rows}
    mine = [step for step in free if (step.claim.run_id, step.claim.epoch) in held]
    states: dict[tuple[UUID, int], Recorded] = dict.fromkeys(held, RunState.RUNNING)
    if len(mine) < len(steps):
        # Those whose lease is lost are not among the rows that are locked: what is read here is newer than the lock.
        others = [step.claim for step in steps if (step.claim.run_id, step.claim.epoch) not in held]
        for row in await connection.execute(_STILL_HELD, _fences(others)):
            states[row.id, row.epoch] = NOT_YET
    noted = [step for step in mine if step.outcome is None]
    if noted:
        await connection.execute(_NOTE, _known(noted))
    ended: list[Ending] = []
    again: list[tuple[UUID, timedelta]] = []
    over = [step for step in mine if step.outcome is not None]
    for step in over:
        key = (step.claim.run_id, step.claim.epoch)
        if step.pause is not None and held[key].in_time and not held[key].cancelled:
            states[key] = RunState.QUEUED
            again.append((step.claim.run_id, step.pause))
        else:
            ending = _ending(step, cancelled=step.pause is not None and held[key].cancelled)
            states[key] = ending.state
            ended.append(ending)
    if over:
        await connection.execute(_END_ATTEMPTS, _known(over) | _outcomes(over))
    if again:
        ids, pauses = zip(*again, strict=True)
        queued = await connection.execute(_QUEUE_AGAIN, {"ids": ids, "pauses": pauses})
        # Before the pause is over too: whoever finds nothing is told until when to sleep.
        await facts.add_queued_of_each(connection, queued.scalars())
    await endings.end(connection, ended)
    return [states.get((step.claim.run_id, step.claim.epoch)) for step in steps]


async def release(connection: AsyncConnection, held: Sequence[Claim]) -> None:
    """Gives leases back, and tells of it, so that another worker goes on at once; those that are lost stay."""
    released = await connection.execute(_RELEASE, _fences(held))
    await facts.add_queued_of_each(connection, released.scalars())


def _fences(claims: Sequence[Claim]) -> dict[str, list[Any]]:
    return {
        "ids": [claim.run_id for claim in claims],
        "epochs": [claim.epoch for claim in claims],
        "holders": [claim.holder for claim in claims],
    }


def _known(steps: Sequence[Progress]) -> dict[str, list[Any]]:
    return {
        "ids": [step.claim.run_id for step in steps],
        "attempts": [step.claim.attempt for step in steps],
        "sessions": [step.session_id for step in steps],
        "turns": [step.turn_id for step in steps],
    }


def _outcomes(steps: Sequence[Progress]) -> dict[str, list[Any]]:
    outcomes = [step.outcome for step in steps if step.outcome is not None]
    return {
        "states": [outcome.state.value for outcome in outcomes],
        "reasons": [outcome.failure and outcome.failure.reason for outcome in outcomes],
        "messages": [outcome.failure and outcome.failure.message for outcome in outcomes],
        **{name: [getattr(outcome.usage, name) for outcome in outcomes] for name in TOKENS},
        "costs": [outcome.cost_usd for outcome in outcomes],
    }


def _ending(step: Progress, *, cancelled: bool) -> Ending:
    outcome = step.outcome
    if outcome is None:
        raise AssertionError("the attempt goes on")
    return Ending(
        step.claim.run_id,
        RunState.CANCELLED if cancelled else outcome.state,
        session_id=step.session_id,
        result=outcome.result,
        structured_output_json=outcome.structured_output_json,
        failure=outcome.failure,
        usage=outcome.usage,
        cost_usd=outcome.cost_usd,
    )
