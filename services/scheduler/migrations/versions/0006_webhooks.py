"""Webhooks of tasks: their secrets, deliveries and attempts.

Revision ID: 0006
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("webhook_secrets", "webhook_deliveries", "webhook_attempts")
_STATEMENTS = (
    """
    ALTER TABLE scheduler.tasks
        ADD COLUMN webhook_url TEXT,
        ADD COLUMN webhook_receiver TEXT,
        ADD COLUMN webhook_states TEXT[] DEFAULT '{}' NOT NULL,
        ADD CONSTRAINT tasks_webhook CHECK ((webhook_url IS NULL) = (webhook_receiver IS NULL))
    """,
    """
    CREATE TABLE scheduler.webhook_secrets (
        task_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        current BYTEA NOT NULL,
        previous BYTEA,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        previous_expire_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (task_id),
        CONSTRAINT webhook_secrets_previous CHECK ((previous IS NULL) = (previous_expire_time IS NULL)),
        FOREIGN KEY(task_id) REFERENCES scheduler.tasks (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE scheduler.webhook_deliveries (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        task_id UUID NOT NULL,
        run_id UUID NOT NULL,
        event_type TEXT NOT NULL,
        message_id TEXT NOT NULL,
        payload BYTEA NOT NULL,
        state TEXT NOT NULL,
        attempt_count INTEGER DEFAULT '0' NOT NULL,
        next_attempt_time TIMESTAMP WITH TIME ZONE,
        lease_holder TEXT,
        give_up_time TIMESTAMP WITH TIME ZONE,
        redelivery_of UUID,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        CONSTRAINT webhook_deliveries_state CHECK (state IN ('PENDING','SUCCEEDED','FAILED','CANCELLED')),
        CONSTRAINT webhook_deliveries_next CHECK ((state = 'PENDING') = (next_attempt_time IS NOT NULL)),
        CONSTRAINT webhook_deliveries_end CHECK ((state = 'PENDING') = (end_time IS NULL)),
        CONSTRAINT webhook_deliveries_lease CHECK (lease_holder IS NULL OR state = 'PENDING'),
        FOREIGN KEY(run_id) REFERENCES scheduler.runs (id) ON DELETE CASCADE
    )
    """,
    # A run ends once.
    """
    CREATE UNIQUE INDEX webhook_deliveries_once ON scheduler.webhook_deliveries (run_id) WHERE redelivery_of IS NULL
    """,
    """
    CREATE INDEX webhook_deliveries_by_owner ON scheduler.webhook_deliveries (organization_id, user_id, id)
    """,
    """
    CREATE INDEX webhook_deliveries_by_task ON scheduler.webhook_deliveries (task_id, id)
    """,
    """
    CREATE INDEX webhook_deliveries_by_run ON scheduler.webhook_deliveries (run_id, id)
    """,
    """
    CREATE INDEX webhook_deliveries_pending ON scheduler.webhook_deliveries (task_id, next_attempt_time, id)
            WHERE state = 'PENDING'
    """,
    """
    CREATE INDEX webhook_deliveries_due ON scheduler.webhook_deliveries (next_attempt_time) WHERE state = 'PENDING'
    """,
    """
    CREATE INDEX webhook_deliveries_leased ON scheduler.webhook_deliveries (task_id) WHERE lease_holder IS NOT NULL
    """,
    """
    CREATE INDEX webhook_deliveries_ended ON scheduler.webhook_deliveries (end_time) WHERE end_time IS NOT NULL
    """,
    """
    CREATE TABLE scheduler.webhook_attempts (
        delivery_id UUID NOT NULL,
        number INTEGER NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        url TEXT NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        duration INTERVAL,
        http_status INTEGER DEFAULT '0' NOT NULL,
        error TEXT DEFAULT '' NOT NULL,
        error_message TEXT DEFAULT '' NOT NULL,
        response_body TEXT DEFAULT '' NOT NULL,
        CONSTRAINT webhook_attempts_pkey PRIMARY KEY (delivery_id, number),
        FOREIGN KEY(delivery_id) REFERENCES scheduler.webhook_deliveries (id) ON DELETE CASCADE
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
    for table in _TABLES:
        enable_row_level_security(op, "scheduler", table, owner_column="user_id")
    grant_tables(op, "scheduler", *_TABLES)


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.execute(f"DROP TABLE scheduler.{table}")
    op.execute(
        "ALTER TABLE scheduler.tasks DROP COLUMN webhook_url, DROP COLUMN webhook_receiver, DROP COLUMN webhook_states"
    )
