"""Runs of tasks and their attempts.

Revision ID: 0003
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = (
    """
    CREATE TABLE scheduler.runs (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        task_id UUID NOT NULL,
        schedule_id UUID,
        backfill_id UUID,
        fire_time TIMESTAMP WITH TIME ZONE,
        due_time TIMESTAMP WITH TIME ZONE NOT NULL,
        state TEXT NOT NULL,
        skip_reason TEXT,
        priority INTEGER NOT NULL,
        name TEXT NOT NULL,
        prompt TEXT NOT NULL,
        variables JSONB NOT NULL,
        sdk_options JSONB NOT NULL,
        labels JSONB NOT NULL,
        run_timeout INTERVAL NOT NULL,
        retry_policy JSONB NOT NULL,
        run_budget_usd NUMERIC(14, 6) NOT NULL,
        attempt INTEGER DEFAULT '0' NOT NULL,
        available_time TIMESTAMP WITH TIME ZONE NOT NULL,
        epoch BIGINT DEFAULT '0' NOT NULL,
        lease_holder TEXT,
        lease_expire_time TIMESTAMP WITH TIME ZONE,
        cancel_time TIMESTAMP WITH TIME ZONE,
        session_id UUID,
        result_text TEXT,
        structured_output_json TEXT DEFAULT '' NOT NULL,
        failure_reason TEXT,
        failure_message TEXT,
        input_tokens BIGINT DEFAULT '0' NOT NULL,
        output_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_read_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
        cost_usd NUMERIC(14, 6) DEFAULT '0' NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE,
        version BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT runs_state CHECK (state IN
            ('PENDING','QUEUED','RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT','SKIPPED')),
        CONSTRAINT runs_fire CHECK (schedule_id IS NULL OR fire_time IS NOT NULL),
        CONSTRAINT runs_lease CHECK ((state = 'RUNNING') = (lease_expire_time IS NOT NULL)),
        CONSTRAINT runs_end CHECK ((state IN ('PENDING','QUEUED','RUNNING')) = (end_time IS NULL)),
        FOREIGN KEY(task_id) REFERENCES scheduler.tasks (id) ON DELETE CASCADE,
        FOREIGN KEY(schedule_id) REFERENCES scheduler.schedules (id) ON DELETE SET NULL
    )
    """,
    # A fire makes one run, and one more in each backfill that goes over it.
    """
    CREATE UNIQUE INDEX runs_once ON scheduler.runs (schedule_id, fire_time, backfill_id) NULLS NOT DISTINCT
            WHERE schedule_id IS NOT NULL
    """,
    """
    CREATE INDEX runs_by_owner ON scheduler.runs (organization_id, user_id, id)
    """,
    """
    CREATE INDEX runs_by_task ON scheduler.runs (task_id, id)
    """,
    """
    CREATE INDEX runs_by_schedule ON scheduler.runs (schedule_id, id) WHERE schedule_id IS NOT NULL
    """,
    """
    CREATE INDEX runs_open ON scheduler.runs (task_id, state) WHERE end_time IS NULL
    """,
    """
    CREATE INDEX runs_claimable ON scheduler.runs (organization_id, priority DESC, available_time, id)
            WHERE state = 'QUEUED'
    """,
    """
    CREATE INDEX runs_leased ON scheduler.runs (lease_expire_time) WHERE state = 'RUNNING'
    """,
    """
    CREATE TABLE scheduler.run_attempts (
        run_id UUID NOT NULL,
        number INTEGER NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        state TEXT NOT NULL,
        session_id UUID,
        turn_id UUID,
        failure_reason TEXT,
        failure_message TEXT,
        input_tokens BIGINT DEFAULT '0' NOT NULL,
        output_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_read_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
        cost_usd NUMERIC(14, 6) DEFAULT '0' NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT run_attempts_pkey PRIMARY KEY (run_id, number),
        CONSTRAINT run_attempts_state CHECK (state IN ('RUNNING','SUCCEEDED','FAILED','CANCELLED','TIMED_OUT')),
        CONSTRAINT run_attempts_end CHECK ((state = 'RUNNING') = (end_time IS NULL)),
        FOREIGN KEY(run_id) REFERENCES scheduler.runs (id) ON DELETE CASCADE
    )
    """,
)


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    for table in ("runs", "run_attempts"):
        enable_row_level_security(op, "scheduler", table, owner_column="user_id")
    grant_tables(op, "scheduler", "runs", "run_attempts")


def downgrade() -> None:
    for table in ("run_attempts", "runs"):
        op.execute(f"DROP TABLE scheduler.{table}")
