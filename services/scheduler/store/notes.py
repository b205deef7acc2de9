"""What transactions tell whoever waits for it, here when they commit (`Database.on_commit`) and in other processes."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note

SCHEDULES_CHANGED: Final = "schedules"
"""A schedule may be due earlier than was known, or its prompt is to be rendered."""
RUNS_CHANGED: Final = "runs changed"
"""A run is not what it was."""
CHANNEL: Final = "aiagent_scheduler_schedules"
"""Where PostgreSQL tells the other replicas of it. Schedules change seldom: that all transactions which notify commit
one after another is nothing to them."""
_NOTIFY: Final = sa.text(f"NOTIFY {CHANNEL}")


async def schedules_changed(connection: AsyncConnection) -> None:
    """Has every replica look which schedules are due, once this transaction has committed."""
    note(connection, SCHEDULES_CHANGED)
    await connection.execute(_NOTIFY)
