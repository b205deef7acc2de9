"""The tables of the schema `scheduler`, as the migrations build them.

Every row carries its organization; the rows a person owns carry the owner too. Row-level security of the
application role rests on those two columns.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

from services.kernel.db.idempotency import idempotency_table
from services.kernel.db.outbox import outbox_table

SCHEMA = "scheduler"
metadata = sa.MetaData(schema=SCHEMA)

_TIME = TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=True)


def _owned() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
    ]


def _versioned() -> list[sa.Column[Any]]:
    return [
        sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    ]


tasks = sa.Table(
    "tasks",
    metadata,
    *_owned(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prompt_template", sa.Text, nullable=False),
    sa.Column("variables", JSONB, nullable=False),
    sa.Column("sdk_options", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("run_timeout", sa.Interval, nullable=False),
    sa.Column("retry_policy", JSONB, nullable=False),
    sa.Column("max_concurrent_runs", sa.Integer, nullable=False),
    sa.Column("run_budget_usd", sa.Numeric(14, 6), nullable=False),
    *_versioned(),
    # Set by DeleteTask: invisible from then on; the row goes when nothing of it is under way.
    sa.Column("delete_time", _TIME),
    sa.Index("tasks_by_owner", "organization_id", "user_id", "id"),
    sa.Index("tasks_deleted", "delete_time", postgresql_where=sa.text("delete_time IS NOT NULL")),
)

outbox = outbox_table(metadata, SCHEMA)
idempotency_keys = idempotency_table(metadata, SCHEMA)
