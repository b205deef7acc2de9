"""Tasks, and what every schema has.

Revision ID: 0001
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = (
    """
    CREATE TABLE scheduler.idempotency_keys (
        organization_id UUID NOT NULL,
        caller_id UUID NOT NULL,
        method TEXT NOT NULL,
        request_id TEXT NOT NULL,
        request_hash BYTEA NOT NULL,
        response BYTEA,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (organization_id, caller_id, method, request_id)
    )
    """,
    """
    CREATE INDEX idempotency_keys_expire_time ON scheduler.idempotency_keys (expire_time)
    """,
    """
    CREATE TABLE scheduler.outbox (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        topic TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        publish_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX outbox_unpublished ON scheduler.outbox (id) WHERE publish_time IS NULL
    """,
    """
    CREATE TABLE scheduler.tasks (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        name TEXT NOT NULL,
        prompt_template TEXT NOT NULL,
        variables JSONB NOT NULL,
        sdk_options JSONB NOT NULL,
        labels JSONB NOT NULL,
        priority INTEGER NOT NULL,
        run_timeout INTERVAL NOT NULL,
        retry_policy JSONB NOT NULL,
        max_concurrent_runs INTEGER NOT NULL,
        run_budget_usd NUMERIC(14, 6) NOT NULL,
        version BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX tasks_by_owner ON scheduler.tasks (organization_id, user_id, id)
    """,
    """
    CREATE INDEX tasks_deleted ON scheduler.tasks (delete_time) WHERE delete_time IS NOT NULL
    """,
)


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    enable_row_level_security(op, "scheduler", "tasks", owner_column="user_id")
    # A request id is its caller's alone.
    enable_row_level_security(op, "scheduler", "idempotency_keys", owner_column="caller_id")
    enable_row_level_security(op, "scheduler", "outbox")
    grant_tables(op, "scheduler", "tasks", "idempotency_keys", "outbox")


def downgrade() -> None:
    for table in ("tasks", "outbox", "idempotency_keys"):
        op.execute(f"DROP TABLE scheduler.{table}")
