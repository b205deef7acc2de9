"""Which sender holds which delivery of a webhook. Due times and leases are judged by PostgreSQL's clock alone.

A claim makes the row of its attempt and moves `next_attempt_time` to the end of the lease, and commits before anything
is sent: whoever dies then leaves a delivery that falls due again. What a sender writes of a failure names holder and
attempt (the fencing token), and touches nothing once another sender has the delivery; that a receiver took it counts
whoever says so.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.domain.webhooks import (
    GIVE_UP_AFTER,
    KEPT,
    LONGEST_WAIT,
    PER_RECEIVER,
    DeliveryState,
    aftermath,
)
from services.scheduler.store.webhook_tables import webhook_attempts, webhook_deliveries
from services.scheduler.store.webhooks import secrets_of
from services.scheduler.usecases.webhooks.ports import Answer, DeliveryClaim, Outlook

LEASE_LIFE: Final = timedelta(seconds=60)
"""For one attempt: its fifteen seconds, and what the database may take before and after."""
_PURGED_AT_ONCE: Final = 1000
SILENCE: Final = timedelta(seconds=1)
"""How long nothing may be heard of a sender whose transaction has rows or the lock of all senders."""
_LONGER_THAN_SILENCE: Final = 1.5
_ENDED_AT_ONCE: Final = 1000
_SPARE: Final = 4
_NOW = sa.func.clock_timestamp()

# Senders claim one after another: two that count at the same time would both find a receiver's last place free. One
# that is frozen before its commit would stop them all: PostgreSQL ends its transaction when nothing is heard of it for
# so long, and the others wait not much longer, and try again.
_ONE_AT_A_TIME = sa.text(
    """
    SELECT set_config('idle_in_transaction_session_timeout', :silence, true), set_config('lock_timeout', :wait, true),
        pg_advisory_xact_lock(1094797636, hashtext('scheduler.webhooks'))
    """
)

# The tasks that have something to send are found by one step into the index for each (a loose index scan).
_WITH_PENDING = """
    WITH RECURSIVE pending AS (
        (SELECT task_id FROM scheduler.webhook_deliveries WHERE state = 'PENDING' ORDER BY task_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.task_id FROM scheduler.webhook_deliveries AS d
                WHERE d.state = 'PENDING' AND d.task_id > p.task_id ORDER BY d.task_id LIMIT 1)
        FROM pending AS p WHERE p.task_id IS NOT NULL
    )
"""

# Nothing here waits for a row that somebody holds, and no one is kept waiting by it for long: see `SILENCE`.
_HEARD: Final = "SELECT set_config('idle_in_transaction_session_timeout', :silence, true)"
_LOST: Final = "error = 'SENDER_LOST', error_message = 'the process that sent it ended before an answer came'"

_CANCEL = sa.text(
    f"""
    {_WITH_PENDING}, unwanted AS (
        SELECT d.id FROM scheduler.webhook_deliveries AS d
        WHERE d.state = 'PENDING' AND (d.lease_holder IS NULL OR d.next_attempt_time <= statement_timestamp())
            AND d.task_id = ANY(ARRAY(
                SELECT p.task_id FROM pending AS p JOIN scheduler.tasks AS t ON t.id = p.task_id
                WHERE t.webhook_url IS NULL))
        LIMIT :at_once FOR UPDATE SKIP LOCKED
    ), cancelled AS (
        UPDATE scheduler.webhook_deliveries
        SET state = 'CANCELLED', end_time = clock_timestamp(), next_attempt_time = NULL, lease_holder = NULL
        WHERE id = ANY(ARRAY(SELECT id FROM unwanted))
    )
    {_HEARD}
    """  # noqa: S608  nothing of it comes from outside
)

# Only what a sender lost: whoever records a failure gives up by itself.
_GIVE_UP = sa.text(
    f"""
    WITH too_late AS (
        SELECT id FROM scheduler.webhook_deliveries
        WHERE lease_holder IS NOT NULL AND next_attempt_time <= statement_timestamp()
            AND give_up_time <= statement_timestamp()
        LIMIT :at_once FOR UPDATE SKIP LOCKED
    ), lost AS (
        UPDATE scheduler.webhook_deliveries
        SET state = 'FAILED', end_time = clock_timestamp(), next_attempt_time = NULL, lease_holder = NULL
        WHERE id = ANY(ARRAY(SELECT id FROM too_late)) RETURNING id, attempt_count
    ), told AS (
        UPDATE scheduler.webhook_attempts AS a
        SET {_LOST}
        FROM lost AS d WHERE a.delivery_id = d.id AND a.number = d.attempt_count AND a.duration IS NULL
    )
    {_HEARD}
    """  # noqa: S608  nothing of it comes from outside
)

# What falls due faster than its receiver takes it would wait for ever. That nobody came to it is told as an attempt.
_EXPIRE = sa.text(
    f"""
    WITH too_late AS (
        SELECT id FROM scheduler.webhook_deliveries
        WHERE state = 'PENDING' AND lease_holder IS NULL AND next_attempt_time <= statement_timestamp() - :longest
        ORDER BY next_attempt_time LIMIT :at_once FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE scheduler.webhook_deliveries
        SET state = 'FAILED', end_time = clock_timestamp(), next_attempt_time = NULL,
            attempt_count = attempt_count + 1
        WHERE id = ANY(ARRAY(SELECT id FROM too_late)) RETURNING *
    ), lost AS (
        UPDATE scheduler.webhook_attempts AS a
        SET {_LOST}
        FROM expired AS d WHERE a.delivery_id = d.id AND a.duration IS NULL AND a.error = ''
    ), told AS (
        INSERT INTO scheduler.webhook_attempts
            (delivery_id, number, organization_id, user_id, url, duration, error, error_message)
        SELECT d.id, d.attempt_count, d.organization_id, d.user_id, coalesce(t.webhook_url, ''), interval '0',
            'NOT_SENT', 'it was due for 24 hours, and no sender came to it'
        FROM expired AS d LEFT JOIN scheduler.tasks AS t ON t.id = d.task_id
    )
    {_HEARD}
    """  # noqa: S608  nothing of it comes from outside
).bindparams(sa.bindparam("longest", type_=sa.Interval))

# Of each task not many more are looked at than could be taken. A message's place is counted behind those to its
# receiver that are under way: what waits for one receiver, however much, keeps nobody else waiting. Of what is left,
# whoever has least under way goes first: an organization with many receivers that hang gets no place that another one
# wants. Some more are chosen than there are places, here and at the receivers, and counted anew without those that
# somebody holds: one that is locked keeps no place. What `_GIVE_UP` is to end is not taken in its stead.
_TAKE = sa.text(
    f"""
    {_WITH_PENDING}, under_way AS (
        SELECT t.organization_id, t.webhook_receiver
        FROM scheduler.webhook_deliveries AS d JOIN scheduler.tasks AS t ON t.id = d.task_id
        WHERE d.lease_holder IS NOT NULL AND d.next_attempt_time > statement_timestamp()
    ), of_receiver AS (
        SELECT webhook_receiver, count(*) AS number FROM under_way GROUP BY webhook_receiver
    ), of_organization AS (
        SELECT organization_id, count(*) AS number FROM under_way GROUP BY organization_id
    ), waiting AS (
        SELECT w.id, w.next_attempt_time, t.organization_id, t.webhook_receiver,
            coalesce(busy.number, 0) AS at_receiver, coalesce(busy.number, 0) + row_number() OVER (
                PARTITION BY t.webhook_receiver ORDER BY w.next_attempt_time, w.id) AS place
        FROM pending AS p
        JOIN scheduler.tasks AS t ON t.id = p.task_id AND t.webhook_url IS NOT NULL
        LEFT JOIN of_receiver AS busy ON busy.webhook_receiver = t.webhook_receiver
        CROSS JOIN LATERAL (
            SELECT d.id, d.next_attempt_time FROM scheduler.webhook_deliveries AS d
            WHERE d.state = 'PENDING' AND d.task_id = p.task_id AND d.next_attempt_time <= statement_timestamp()
                AND (d.lease_holder IS NULL OR d.give_up_time > statement_timestamp())
            ORDER BY d.next_attempt_time, d.id LIMIT :per_receiver + :spare
        ) AS w
        WHERE coalesce(busy.number, 0) < :per_receiver
    ), in_turn AS (
        SELECT w.*, coalesce(busy.number, 0) AS of_organization, coalesce(busy.number, 0) + row_number() OVER (
                PARTITION BY w.organization_id, w.place > :per_receiver
                ORDER BY w.next_attempt_time, w.id) AS turn
        FROM waiting AS w LEFT JOIN of_organization AS busy ON busy.organization_id = w.organization_id
        WHERE w.place <= :per_receiver + :spare
    ), locked AS (
        SELECT d.id FROM scheduler.webhook_deliveries AS d
        WHERE d.state = 'PENDING' AND d.next_attempt_time <= statement_timestamp() AND d.id = ANY(ARRAY(
            SELECT id FROM in_turn ORDER BY place > :per_receiver, turn, next_attempt_time, id
            LIMIT :places + :spare))
        FOR UPDATE SKIP LOCKED
    ), placed AS (
        SELECT w.id, w.next_attempt_time, w.organization_id, w.of_organization, w.at_receiver + row_number() OVER (
                PARTITION BY w.webhook_receiver ORDER BY w.next_attempt_time, w.id) AS place_left
        FROM in_turn AS w JOIN locked ON locked.id = w.id
    ), turned AS (
        SELECT p.id, p.next_attempt_time, p.of_organization + row_number() OVER (
                PARTITION BY p.organization_id ORDER BY p.next_attempt_time, p.id) AS turn
        FROM placed AS p WHERE p.place_left <= :per_receiver
    ), chosen AS (
        SELECT id FROM turned ORDER BY turn, next_attempt_time, id LIMIT :places
    ), taken AS (
        UPDATE scheduler.webhook_deliveries AS d
        SET attempt_count = d.attempt_count + 1, lease_holder = :holder,
            next_attempt_time = clock_timestamp() + :life,
            give_up_time = coalesce(d.give_up_time, clock_timestamp() + :give_up_after)
        WHERE d.id = ANY(ARRAY(SELECT id FROM chosen)) RETURNING d.*
    ), lost AS (
        UPDATE scheduler.webhook_attempts AS a
        SET {_LOST}
        FROM taken AS d WHERE a.delivery_id = d.id AND a.duration IS NULL AND a.error = ''
    ), begun AS (
        INSERT INTO scheduler.webhook_attempts (delivery_id, number, organization_id, user_id, url)
        SELECT d.id, d.attempt_count, d.organization_id, d.user_id, t.webhook_url
        FROM taken AS d JOIN scheduler.tasks AS t ON t.id = d.task_id
    )
    SELECT d.id, d.task_id, d.attempt_count, d.message_id, d.payload, t.webhook_url, s.*
    FROM taken AS d JOIN scheduler.tasks AS t ON t.id = d.task_id
    JOIN scheduler.webhook_secrets AS s ON s.task_id = d.task_id
    """  # noqa: S608  nothing of it comes from outside
).bindparams(
    sa.bindparam("life", type_=sa.Interval),
    sa.bindparam("give_up_after", type_=sa.Interval),
    sa.bindparam("places", type_=sa.Integer),
    sa.bindparam("per_receiver", type_=sa.Integer),
    sa.bindparam("spare", type_=sa.Integer),
    sa.bindparam("holder", type_=sa.Text),
)

_OUTLOOK = sa.text(
    """
    SELECT (SELECT extract(epoch FROM next_attempt_time - statement_timestamp()) FROM scheduler.webhook_deliveries
            WHERE state = 'PENDING' AND next_attempt_time > statement_timestamp()
            ORDER BY next_attempt_time LIMIT 1) AS next_seconds,
        (SELECT extract(epoch FROM statement_timestamp() - next_attempt_time) FROM scheduler.webhook_deliveries
            WHERE state = 'PENDING' AND next_attempt_time <= statement_timestamp()
            ORDER BY next_attempt_time LIMIT 1) AS overdue_seconds
    """
)


async def end_hopeless(connection: AsyncConnection, *, silence: timedelta = SILENCE) -> None:
    """Ends deliveries whose task has no webhook any more, or whose time is over; a bounded number of them.

    Before a claim, in a transaction of its own: those that somebody holds are left for the next time, and no other
    sender waits for this one.

    Args:
        connection: A system transaction.
        silence: See `SILENCE`. What is ended by it has changed nothing.
    """
    values = {"at_once": _ENDED_AT_ONCE, "silence": _milliseconds(silence)}
    for statement in (_CANCEL, _GIVE_UP):
        await connection.execute(statement, values)
    await connection.execute(_EXPIRE, {**values, "longest": LONGEST_WAIT})


async def claim(
    connection: AsyncConnection,
    holder: str,
    limit: int,
    *,
    life: timedelta = LEASE_LIFE,
    per_receiver: int = PER_RECEIVER,
    silence: timedelta = SILENCE,
) -> list[DeliveryClaim]:
    """Takes deliveries that are due.

    Args:
        connection: A system transaction.
        holder: The sender's own id, new at each start.
        limit: How many at most.
        life: How long a delivery is held for its attempt.
        per_receiver: How many to one host and port at once, those of all senders together.
        silence: See `SILENCE`. Whose transaction is ended by it has claimed nothing.

    Raises:
        ServiceError: by the transaction: DATABASE_BUSY where another sender keeps the lock, DATABASE_UNAVAILABLE where
            it was ended.
    """
    await _take_turn(connection, silence)
    values = {"holder": holder, "places": limit, "life": life, "per_receiver": per_receiver, "spare": _SPARE}
    rows = await connection.execute(_TAKE, {**values, "give_up_after": GIVE_UP_AFTER})
    return [
        DeliveryClaim(
            delivery_id=row.id,
            task_id=row.task_id,
            holder=holder,
            attempt=row.attempt_count,
            url=row.webhook_url,
            message_id=row.message_id,
            payload=row.payload,
            secrets=secrets_of(row),
        )
        for row in rows
    ]


async def finish(
    connection: AsyncConnection, claim: DeliveryClaim, answer: Answer, pause: timedelta | None
) -> DeliveryState:
    """Records what came of an attempt, and what becomes of its delivery.

    Args:
        connection: A system transaction.
        claim: The attempt.
        answer: What came of it.
        pause: How long to wait before the next one; None if there is to be none. See `domain.webhooks.aftermath`.

    Returns:
        Where the delivery stands; CANCELLED for one that is gone.
    """
    columns = webhook_deliveries.c
    row = (
        await connection.execute(
            sa.select(
                columns.state,
                columns.lease_holder,
                columns.attempt_count,
                (columns.give_up_time - _NOW).label("left"),
            )
            .where(columns.id == claim.delivery_id)
            .with_for_update()
        )
    ).one_or_none()
    if row is None:
        return DeliveryState.CANCELLED
    await connection.execute(
        sa.update(webhook_attempts)
        .where(
            webhook_attempts.c.delivery_id == claim.delivery_id, webhook_attempts.c.number == claim.attempt
        )
        .values(
            duration=answer.duration,
            http_status=answer.status,
            error=answer.error,
            error_message=answer.error_message,
            response_body=answer.body,
        )
    )
    after = aftermath(
        DeliveryState(row.state),
        failed=bool(answer.error),
        held=(row.lease_holder, row.attempt_count) == (claim.holder, claim.attempt),
        pause=pause,
        left=row.left,
    )
    values: dict[str, Any]
    if after.pause is not None:
        values = {"next_attempt_time": _NOW + after.pause, "lease_holder": None}
    elif after.state.value != row.state:
        values = {
            "state": after.state.value,
            "end_time": _NOW,
            "next_attempt_time": None,
            "lease_holder": None,
        }
    else:
        return after.state
    await connection.execute(
        sa.update(webhook_deliveries).where(columns.id == claim.delivery_id).values(**values)
    )
    return after.state


async def release(connection: AsyncConnection, holder: str, *, silence: timedelta = SILENCE) -> None:
    """Gives back all that a sender holds, so that another one goes on at once.

    Behind the lock of all senders: the commit of a claim that was broken off may be on its way still. Whoever dies
    before the commit leaves leases that run out.

    Args:
        connection: A system transaction.
        holder: The sender, which claims and sends nothing more.
        silence: See `SILENCE`.
    """
    await _take_turn(connection, silence)
    columns = webhook_deliveries.c
    await connection.execute(
        sa.update(webhook_deliveries)
        .where(columns.state == DeliveryState.PENDING.value, columns.lease_holder == holder)
        .values(next_attempt_time=_NOW, lease_holder=None)
    )


async def outlook(connection: AsyncConnection) -> Outlook:
    """Tells what waits."""
    row = (await connection.execute(_OUTLOOK)).one()
    return Outlook(
        None if row.next_seconds is None else float(row.next_seconds), float(row.overdue_seconds or 0)
    )


async def purge(connection: AsyncConnection, limit: int = _PURGED_AT_ONCE) -> int:
    """Removes deliveries that ended long ago, at most `limit`, those that ended first; returns how many."""
    found = (
        sa.select(webhook_deliveries.c.id)
        .where(webhook_deliveries.c.end_time <= sa.func.statement_timestamp() - KEPT)
        .order_by(webhook_deliveries.c.end_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    removed = await connection.execute(
        sa.delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(found))
    )
    return removed.rowcount


async def _take_turn(connection: AsyncConnection, silence: timedelta) -> None:
    limits = {"silence": _milliseconds(silence), "wait": _milliseconds(silence * _LONGER_THAN_SILENCE)}
    await connection.execute(_ONE_AT_A_TIME, limits)


def _milliseconds(span: timedelta) -> str:
    return str(round(span / timedelta(milliseconds=1)))
