"""How PostgreSQL finds what is due: what a look costs must not grow with what is not."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.scheduler.store import firing

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("look", "values", "index", "column"),
    [
        (firing._TAKE_DUE, {"places": 20}, "schedules_due", "next_due_time"),
        (firing._TAKE_BACKFILL, {}, "backfills_due", "available_time"),
    ],
)
async def test_what_is_not_due_is_not_read(
    scheduler_database: Database, look: sa.Select[Any], values: dict[str, int], index: str, column: str
) -> None:
    async with scheduler_database.system() as connection:
        # The tables of a test are small enough to be read whole.
        await connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        compiled = look.compile(dialect=connection.dialect)
        named = {**compiled.params, **values, "aside": []}
        rows = await connection.exec_driver_sql(
            f"EXPLAIN {compiled}", tuple(named[name] for name in compiled.positiontup or ())
        )
        plan = [row[0].strip() for row in rows]
    found = next(place for place, line in enumerate(plan) if index in line)
    assert plan[found + 1].startswith(f"Index Cond: ({column} <= "), "\n".join(plan)
