"""The tables of webhooks, beside those of `tables`, as the migrations build them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP, UUID

from services.scheduler.store.tables import metadata

_TIME = TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=True)
_OF_TASK = "scheduler.tasks.id"

webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("task_id", _ID, sa.ForeignKey(_OF_TASK, ondelete="CASCADE"), primary_key=True),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    # Sealed.
    sa.Column("current", BYTEA, nullable=False),
    sa.Column("previous", BYTEA),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("previous_expire_time", _TIME),
    sa.CheckConstraint(
        "(previous IS NULL) = (previous_expire_time IS NULL)", name="webhook_secrets_previous"
    ),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    # No reference: who ends a run holds its row, and would wait for the task's.
    sa.Column("task_id", _ID, nullable=False),
    sa.Column("run_id", _ID, sa.ForeignKey("scheduler.runs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("payload", BYTEA, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt_count", sa.Integer, nullable=False, server_default="0"),
    # While an attempt is under way its lease's end, which is when another one follows if nothing is heard of it.
    sa.Column("next_attempt_time", _TIME),
    sa.Column("lease_holder", sa.Text),
    # Set by the first attempt: none follows later.
    sa.Column("give_up_time", _TIME),
    sa.Column("redelivery_of", _ID),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("end_time", _TIME),
    sa.CheckConstraint(
        "state IN ('PENDING','SUCCEEDED','FAILED','CANCELLED')", name="webhook_deliveries_state"
    ),
    sa.CheckConstraint(
        "(state = 'PENDING') = (next_attempt_time IS NOT NULL)", name="webhook_deliveries_next"
    ),
    sa.CheckConstraint("(state = 'PENDING') = (end_time IS NULL)", name="webhook_deliveries_end"),
    sa.CheckConstraint("lease_holder IS NULL OR state = 'PENDING'", name="webhook_deliveries_lease"),
    # A run ends once.
    sa.Index(
        "webhook_deliveries_once", "run_id", unique=True, postgresql_where=sa.text("redelivery_of IS NULL")
    ),
    sa.Index("webhook_deliveries_by_owner", "organization_id", "user_id", "id"),
    sa.Index("webhook_deliveries_by_task", "task_id", "id"),
    sa.Index("webhook_deliveries_by_run", "run_id", "id"),
    sa.Index(
        "webhook_deliveries_pending",
        "task_id",
        "next_attempt_time",
        "id",
        postgresql_where=sa.text("state = 'PENDING'"),
    ),
    sa.Index("webhook_deliveries_due", "next_attempt_time", postgresql_where=sa.text("state = 'PENDING'")),
    sa.Index("webhook_deliveries_leased", "task_id", postgresql_where=sa.text("lease_holder IS NOT NULL")),
    sa.Index("webhook_deliveries_ended", "end_time", postgresql_where=sa.text("end_time IS NOT NULL")),
)

webhook_attempts = sa.Table(
    "webhook_attempts",
    metadata,
    sa.Column(
        "delivery_id",
        _ID,
        sa.ForeignKey("scheduler.webhook_deliveries.id", ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("start_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    # None while it is under way, and for one whose process died.
    sa.Column("duration", sa.Interval),
    sa.Column("http_status", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    sa.Column("error_message", sa.Text, nullable=False, server_default=""),
    sa.Column("response_body", sa.Text, nullable=False, server_default=""),
    sa.PrimaryKeyConstraint("delivery_id", "number", name="webhook_attempts_pkey"),
)
