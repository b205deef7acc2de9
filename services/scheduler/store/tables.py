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
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.statement_timestamp()),
        sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.statement_timestamp()),
    ]


def _outcome() -> list[sa.Column[Any]]:
    counters = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    return [
        sa.Column("failure_reason", sa.Text),
        sa.Column("failure_message", sa.Text),
        *[sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in counters],
        sa.Column("cost_usd", sa.Numeric(14, 6), nullable=False, server_default="0"),
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
    # Whom to tell of its runs' ends; no states mean all. `webhook_receiver` is the host and the port of the URL.
    sa.Column("webhook_url", sa.Text),
    sa.Column("webhook_receiver", sa.Text),
    sa.Column("webhook_states", sa.ARRAY(sa.Text), nullable=False, server_default="{}"),
    *_versioned(),
    # Set by DeleteTask: invisible from then on; the row goes when nothing of it is under way.
    sa.Column("delete_time", _TIME),
    sa.CheckConstraint("(webhook_url IS NULL) = (webhook_receiver IS NULL)", name="tasks_webhook"),
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
    sa.Column("missed_fires", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("last_fire_time", _TIME),
    # What its runs are told, or why they cannot be: rendered ahead, since it is the same for every fire. Stale from a
    # change of what it is made of until it is rendered anew; then nothing fires.
    sa.Column("prompt", sa.Text),
    sa.Column("prompt_fault_reason", sa.Text),
    sa.Column("prompt_fault_message", sa.Text),
    sa.Column("prompt_stale", sa.Boolean, nullable=False, server_default="true"),
    *_versioned(),
    sa.CheckConstraint(
        "prompt_stale OR num_nonnulls(prompt, prompt_fault_reason) = 1", name="schedules_prompt"
    ),
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
    sa.Index(
        "schedules_due", "next_due_time", postgresql_where=sa.text("state = 'ACTIVE' AND NOT prompt_stale")
    ),
    sa.Index("schedules_stale", "organization_id", "next_due_time", postgresql_where=sa.text("prompt_stale")),
)

backfills = sa.Table(
    "backfills",
    metadata,
    *_owned(),
    sa.Column(
        "schedule_id", _ID, sa.ForeignKey("scheduler.schedules.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("start_time", _TIME, nullable=False),
    sa.Column("end_time", _TIME, nullable=False),
    sa.Column("overlap_policy", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The nominal time up to which its fires are made.
    sa.Column("handled_until", _TIME, nullable=False),
    sa.Column("fire_count", sa.BigInteger, nullable=False, server_default="0"),
    # Not looked at before: it waits for room.
    sa.Column("available_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("complete_time", _TIME),
    sa.CheckConstraint(
        "overlap_policy IN ('SKIP','BUFFER_ONE','BUFFER_ALL','CANCEL_OTHER','TERMINATE_OTHER','ALLOW_ALL')",
        name="backfills_overlap_policy",
    ),
    sa.CheckConstraint("state IN ('RUNNING','COMPLETED','CANCELLED')", name="backfills_state"),
    sa.CheckConstraint("(state = 'RUNNING') = (complete_time IS NULL)", name="backfills_complete"),
    sa.Index("backfills_by_schedule", "schedule_id", "id"),
    sa.Index("backfills_due", "available_time", postgresql_where=sa.text("state = 'RUNNING'")),
)

runs = sa.Table(
    "runs",
    metadata,
    *_owned(),
    sa.Column("task_id", _ID, sa.ForeignKey("scheduler.tasks.id", ondelete="CASCADE"), nullable=False),
    # What made it, which may be gone. No references: removing a schedule would write to every run that it ever made.
    sa.Column("schedule_id", _ID),
    sa.Column("backfill_id", _ID),
    # The run that this one does again.
    sa.Column("retry_of", _ID),
    # The nominal time of its fire; `due_time` is when it was to begin.
    sa.Column("fire_time", _TIME),
    sa.Column("due_time", _TIME, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("skip_reason", sa.Text),
    sa.Column("priority", sa.Integer, nullable=False),
    # What it does is a copy of what its task said when it was made.
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("variables", JSONB, nullable=False),
    sa.Column("sdk_options", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("run_timeout", sa.Interval, nullable=False),
    sa.Column("retry_policy", JSONB, nullable=False),
    sa.Column("run_budget_usd", sa.Numeric(14, 6), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # Not claimed before: the pause after a failed attempt.
    sa.Column("available_time", _TIME, nullable=False),
    # The fencing token of whoever has claimed it, raised with each claim.
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_expire_time", _TIME),
    # Of the attempt under way: how often a lease ran out that its worker had not given back.
    sa.Column("take_overs", sa.Integer, nullable=False, server_default="0"),
    # When somebody asked for its end.
    sa.Column("cancel_time", _TIME),
    sa.Column("session_id", _ID),
    sa.Column("result_text", sa.Text),
    sa.Column("structured_output_json", sa.Text, nullable=False, server_default=""),
    *_outcome(),
    sa.Column("start_time", _TIME),
    sa.Column("end_time", _TIME),
    *_versioned(),
    sa.CheckConstraint(
        "state IN ('PENDING','QUEUED','RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT','SKIPPED')",
        name="runs_state",
    ),
    sa.CheckConstraint("schedule_id IS NULL OR fire_time IS NOT NULL", name="runs_fire"),
    sa.CheckConstraint("(state = 'RUNNING') = (lease_expire_time IS NOT NULL)", name="runs_lease"),
    sa.CheckConstraint("(state IN ('PENDING','QUEUED','RUNNING')) = (end_time IS NULL)", name="runs_end"),
    # A fire makes one run, and one more in each backfill that goes over it.
    sa.Index(
        "runs_once",
        "schedule_id",
        "fire_time",
        "backfill_id",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    ),
    sa.Index("runs_by_owner", "organization_id", "user_id", "id"),
    sa.Index("runs_by_task", "task_id", "id"),
    sa.Index("runs_by_schedule", "schedule_id", "id", postgresql_where=sa.text("schedule_id IS NOT NULL")),
    sa.Index(
        "runs_open_by_schedule",
        "schedule_id",
        "id",
        postgresql_where=sa.text("schedule_id IS NOT NULL AND end_time IS NULL"),
    ),
    sa.Index("runs_held_back", "schedule_id", "id", postgresql_where=sa.text("state = 'PENDING'")),
    sa.Index("runs_by_backfill", "backfill_id", "id", postgresql_where=sa.text("backfill_id IS NOT NULL")),
    sa.Index("runs_open", "task_id", "state", postgresql_where=sa.text("end_time IS NULL")),
    # For housekeeping.
    sa.Index("runs_ended", "end_time", postgresql_where=sa.text("end_time IS NOT NULL")),
    sa.Index("runs_leased", "lease_expire_time", postgresql_where=sa.text("state = 'RUNNING'")),
)
sa.Index(
    "runs_claimable",
    runs.c.organization_id,
    runs.c.priority.desc(),
    runs.c.available_time,
    runs.c.id,
    postgresql_where=sa.text("state = 'QUEUED'"),
)
# When the next one may be had that waits for its time.
sa.Index("runs_available", runs.c.available_time, postgresql_where=sa.text("state = 'QUEUED'"))

run_attempts = sa.Table(
    "run_attempts",
    metadata,
    sa.Column("run_id", _ID, sa.ForeignKey("scheduler.runs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("session_id", _ID),
    sa.Column("turn_id", _ID),
    *_outcome(),
    sa.Column("start_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("end_time", _TIME),
    sa.PrimaryKeyConstraint("run_id", "number", name="run_attempts_pkey"),
    sa.CheckConstraint(
        "state IN ('RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT')", name="run_attempts_state"
    ),
    sa.CheckConstraint("(state = 'RUNNING') = (end_time IS NULL)", name="run_attempts_end"),
)

outbox = outbox_table(metadata, SCHEMA)
idempotency_keys = idempotency_table(metadata, SCHEMA)
