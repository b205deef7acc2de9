"""Schedules of tasks.

Revision ID: 0002
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLE = (
    """
    CREATE TABLE scheduler.schedules (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        task_id UUID NOT NULL,
        name TEXT NOT NULL,
        cron_expression TEXT,
        interval INTERVAL,
        time_zone TEXT NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE,
        jitter INTERVAL NOT NULL,
        anchor TIMESTAMP WITH TIME ZONE,
        variables JSONB NOT NULL,
        overlap_policy TEXT NOT NULL,
        catch_up_window INTERVAL NOT NULL,
        pause_on_failure BOOLEAN NOT NULL,
        remaining_runs BIGINT,
        state TEXT NOT NULL,
        note TEXT DEFAULT '' NOT NULL,
        handled_until TIMESTAMP WITH TIME ZONE NOT NULL,
        next_fire_time TIMESTAMP WITH TIME ZONE,
        next_due_time TIMESTAMP WITH TIME ZONE,
        version BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT schedules_times CHECK (num_nonnulls(cron_expression, interval) = 1),
        CONSTRAINT schedules_overlap_policy CHECK (overlap_policy IN
            ('SKIP','BUFFER_ONE','BUFFER_ALL','CANCEL_OTHER','TERMINATE_OTHER','ALLOW_ALL')),
        CONSTRAINT schedules_state CHECK (state IN ('ACTIVE','PAUSED','ENDED')),
        CONSTRAINT schedules_next CHECK ((state = 'ACTIVE') = (next_due_time IS NOT NULL)),
        CONSTRAINT schedules_remaining_runs CHECK (remaining_runs >= 0),
        FOREIGN KEY(task_id) REFERENCES scheduler.tasks (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX schedules_by_owner ON scheduler.schedules (organization_id, user_id, id)
    """,
    """
    CREATE INDEX schedules_by_task ON scheduler.schedules (task_id, id)
    """,
    """
    CREATE INDEX schedules_due ON scheduler.schedules (next_due_time) WHERE state = 'ACTIVE'
    """,
)


def upgrade() -> None:
    for statement in _TABLE:
        op.execute(statement)
    enable_row_level_security(op, "scheduler", "schedules", owner_column="user_id")
    grant_tables(op, "scheduler", "schedules")


def downgrade() -> None:
    op.execute("DROP TABLE scheduler.schedules")
