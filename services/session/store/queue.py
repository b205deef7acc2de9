"""Where queued turns stand in the whole installation: a count across tenants, of which nobody learns but a number.

It runs as the system role; row-level security does not stand behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa

from services.kernel.db import Database
from services.session.store.tables import turns

MOST_AHEAD = 1000
"""Further ones are not counted: they cost, and a person is told no more by them."""
_OPEN = ("QUEUED", "STARTING", "RUNNING", "WAITING")
_waiting = turns.alias("waiting")
_earlier = turns.alias("earlier")
# Turns that wait for a place, not for another turn of their session: the first open ones of theirs.
_competing = (
    sa.select(sa.literal(1))
    .select_from(_waiting)
    .where(
        _waiting.c.state == "QUEUED",
        sa.tuple_(_waiting.c.create_time, _waiting.c.id) < sa.tuple_(turns.c.create_time, turns.c.id),
        _waiting.c.session_id != turns.c.session_id,
        ~sa.exists().where(
            _earlier.c.session_id == _waiting.c.session_id,
            _earlier.c.number < _waiting.c.number,
            _earlier.c.state.in_(_OPEN),
        ),
    )
    .correlate(turns)
    .limit(MOST_AHEAD)
    .subquery()
)
_AHEAD = sa.select(
    turns.c.id, sa.select(sa.func.count()).select_from(_competing).scalar_subquery().label("ahead")
).where(turns.c.id.in_(sa.bindparam("turn_ids", expanding=True)), turns.c.state == "QUEUED")


class QueueQueries:
    """Counts what is ahead of queued turns."""

    def __init__(self, database: Database) -> None:
        """Args: database: the session schema."""
        self._database = database

    async def ahead(self, turn_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How many turns of other sessions were sent before each of those that are queued, and wait for a place."""
        async with self._database.system() as connection:
            rows = await connection.execute(_AHEAD, {"turn_ids": list(turn_ids)})
            return {row.id: row.ahead for row in rows}
