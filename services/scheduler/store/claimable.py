"""Which of the runs that wait a worker may take: said once, for the claim and for whoever asks how long they wait."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

PER_USER: Final = sa.bindparam("per_user", type_=sa.Integer)
"""How many runs of one user may be under way at once; 0 for no limit."""

WITH_PLACES: Final = """
    under_way AS (
        SELECT organization_id, user_id, task_id, count(*) AS number FROM scheduler.runs WHERE state = 'RUNNING'
        GROUP BY organization_id, user_id, task_id
    ), of_users AS (
        SELECT user_id, sum(number) AS number FROM under_way WHERE :per_user > 0 GROUP BY user_id
    ), of_tasks AS (
        SELECT task_id, sum(number) AS number FROM under_way GROUP BY task_id
    ), full_users AS (
        SELECT user_id FROM of_users WHERE number >= :per_user
    ), full_tasks AS (
        SELECT t.id FROM of_tasks AS u JOIN scheduler.tasks AS t ON t.id = u.task_id
        WHERE t.max_concurrent_runs > 0 AND u.number >= t.max_concurrent_runs
    )
"""
"""What is under way, and whose places are all taken: table expressions for a query that takes `PER_USER`."""

MAY_BE_TAKEN: Final = """
    r.state = 'QUEUED' AND r.available_time <= clock_timestamp()
    AND r.task_id NOT IN (SELECT id FROM full_tasks) AND r.user_id NOT IN (SELECT user_id FROM full_users)
"""
"""Of a run `r`, beside `WITH_PLACES`; how many of one task or user, is for the claim to count."""

_OLDEST = sa.text(
    f"""
    WITH {WITH_PLACES}
    SELECT extract(epoch FROM clock_timestamp() - min(r.available_time)) FROM scheduler.runs AS r WHERE {MAY_BE_TAKEN}
    """  # noqa: S608  nothing of it comes from outside
).bindparams(PER_USER)


async def oldest_seconds(connection: AsyncConnection, per_user: int) -> float:
    """How long the oldest run that may be taken has been waiting; 0 when there is none.

    Args:
        connection: A system transaction.
        per_user: As for the claim.
    """
    seconds = (await connection.execute(_OLDEST, {"per_user": per_user})).scalar_one()
    return max(0.0, float(seconds or 0.0))
