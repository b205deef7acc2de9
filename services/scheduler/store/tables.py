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

schedules = sa.Table(
    "schedules",
    metadata,
    *_owned(),
    sa.Column("task_id", _ID, sa.ForeignKey("scheduler.tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("cron_expression", sa.Text),
    sa.Column("interval", sa.Interval),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("start_time", _TIME),
    sa.Column("end_time", _TIME),
    sa.Column("jitter", sa.Interval, nullable=False),
    sa.Column("anchor", _TIME),
    sa.Column("variables", JSONB, nullable=False),
    sa.Column("overlap_policy", sa.Text, nullable=False),
    sa.Column("catch_up_window", sa.Interval, nullable=False),
    sa.Column("pause_on_failure", sa.Boolean, nullable=False),
    sa.Column("remaining_runs", sa.BigInteger),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    # Nominal times; `next_due_time` is the next one with its share of the jitter, by which fires are made.
    sa.Column("handled_until", _TIME, nullable=False),
    sa.Column("next_fire_time", _TIME),
    sa.Column("next_due_time", _TIME),
    *_versioned(),
    sa.CheckConstraint("num_nonnulls(cron_expression, interval) = 1", name="schedules_times"),
    sa.CheckConstraint(
        "overlap_policy IN ('SKIP','BUFFER_ONE','BUFFER_ALL','CANCEL_OTHER','TERMINATE_OTHER','ALLOW_ALL')",
        name="schedules_overlap_policy",
    ),
    sa.CheckConstraint("state IN ('ACTIVE','PAUSED','ENDED')", name="schedules_state"),
    sa.CheckConstraint("(state = 'ACTIVE') = (next_due_time IS NOT NULL)", name="schedules_next"),
    sa.CheckConstraint("remaining_runs >= 0", name="schedules_remaining_runs"),
    sa.Index("schedules_by_owner", "organization_id", "user_id", "id"),
    sa.Index("schedules_by_task", "task_id", "id"),
    sa.Index("schedules_due", "next_due_time", postgresql_where=sa.text("state = 'ACTIVE'")),
)


def _spent() -> list[sa.Column[Any]]:
    counts = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    return [
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in counts),
        sa.Column("cost_usd", sa.Numeric(14, 6), nullable=False, server_default="0"),
    ]


# What a run does is a copy of what its task said when it was made.
runs = sa.Table(
    "runs",
    metadata,
    *_owned(),
    sa.Column("task_id", _ID, sa.ForeignKey("scheduler.tasks.id", ondelete="CASCADE"), nullable=False),
    # The schedule may be gone: its runs stay.
    sa.Column("schedule_id", _ID),
    sa.Column("fire_time", _TIME),
    sa.Column("backfill_id", _ID),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("variables", JSONB, nullable=False),
    sa.Column("sdk_options", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("run_timeout", sa.Interval, nullable=False),
    sa.Column("retry_policy", JSONB, nullable=False),
    sa.Column("run_budget_usd", sa.Numeric(14, 6), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # While it is queued: when the pause before its next attempt is over.
    sa.Column("available_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_expire_time", _TIME),
    sa.Column("session_id", _ID),
    sa.Column("result", sa.Text, nullable=False, server_default=""),
    sa.Column("structured_output_json", sa.Text, nullable=False, server_default=""),
    sa.Column("failure_reason", sa.Text),
    sa.Column("failure_message", sa.Text),
    *_spent(),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("start_time", _TIME),
    sa.Column("end_time", _TIME),
    sa.CheckConstraint(
        "state IN ('PENDING','QUEUED','RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT','SKIPPED')",
        name="runs_state",
    ),
    sa.CheckConstraint("(state = 'RUNNING') = (lease_expire_time IS NOT NULL)", name="runs_lease"),
    sa.CheckConstraint("(schedule_id IS NULL) = (fire_time IS NULL)", name="runs_fire"),
    sa.Index("runs_by_owner", "organization_id", "user_id", "id"),
    sa.Index("runs_by_task", "task_id", "id"),
    sa.Index(
        "runs_queued",
        "organization_id",
        sa.text("priority DESC"),
        "available_time",
        "id",
        postgresql_where=sa.text("state = 'QUEUED'"),
    ),
    sa.Index("runs_running", "lease_expire_time", postgresql_where=sa.text("state = 'RUNNING'")),
    # A schedule fires once for each of its times, whoever makes the fire.
    sa.Index(
        "runs_of_fires",
        "schedule_id",
        "fire_time",
        "backfill_id",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    ),
)

run_attempts = sa.Table(
    "run_attempts",
    metadata,
    sa.Column("run_id", _ID, sa.ForeignKey("scheduler.runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("session_id", _ID),
    sa.Column("turn_id", _ID),
    sa.Column("failure_reason", sa.Text),
    sa.Column("failure_message", sa.Text),
    *_spent(),
    sa.Column("start_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("end_time", _TIME),
    sa.CheckConstraint(
        "state IN ('RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT')", name="run_attempts_state"
    ),
)

outbox = outbox_table(metadata, SCHEMA)
idempotency_keys = idempotency_table(metadata, SCHEMA)
