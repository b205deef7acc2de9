"""What fires leave behind: rendered prompts, what was missed, backfills.

Revision ID: 0004
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE scheduler.schedules
        ADD COLUMN missed_fires BIGINT DEFAULT '0' NOT NULL,
        ADD COLUMN last_fire_time TIMESTAMP WITH TIME ZONE,
        ADD COLUMN prompt TEXT,
        ADD COLUMN prompt_fault_reason TEXT,
        ADD COLUMN prompt_fault_message TEXT,
        ADD COLUMN prompt_stale BOOLEAN DEFAULT 'true' NOT NULL,
        ADD CONSTRAINT schedules_prompt CHECK (prompt_stale OR num_nonnulls(prompt, prompt_fault_reason) = 1)
    """,
    """
    DROP INDEX scheduler.schedules_due
    """,
    """
    CREATE INDEX schedules_due ON scheduler.schedules (next_due_time) WHERE state = 'ACTIVE' AND NOT prompt_stale
    """,
    """
    CREATE INDEX schedules_stale ON scheduler.schedules (next_due_time) WHERE state = 'ACTIVE' AND prompt_stale
    """,
    """
    ALTER TABLE scheduler.runs ADD COLUMN retry_of UUID
    """,
    """
    CREATE INDEX runs_open_by_schedule ON scheduler.runs (schedule_id, id)
            WHERE schedule_id IS NOT NULL AND end_time IS NULL
    """,
    """
    CREATE INDEX runs_held_back ON scheduler.runs (schedule_id, id) WHERE state = 'PENDING'
    """,
    """
    CREATE INDEX runs_by_backfill ON scheduler.runs (backfill_id, id) WHERE backfill_id IS NOT NULL
    """,
    """
    CREATE TABLE scheduler.backfills (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        schedule_id UUID NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE NOT NULL,
        overlap_policy TEXT NOT NULL,
        state TEXT NOT NULL,
        handled_until TIMESTAMP WITH TIME ZONE NOT NULL,
        fire_count BIGINT DEFAULT '0' NOT NULL,
        available_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        complete_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        CONSTRAINT backfills_overlap_policy CHECK (overlap_policy IN
            ('SKIP','BUFFER_ONE','BUFFER_ALL','CANCEL_OTHER','TERMINATE_OTHER','ALLOW_ALL')),
        CONSTRAINT backfills_state CHECK (state IN ('RUNNING','COMPLETED','CANCELLED')),
        CONSTRAINT backfills_complete CHECK ((state = 'RUNNING') = (complete_time IS NULL)),
        FOREIGN KEY(schedule_id) REFERENCES scheduler.schedules (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX backfills_by_schedule ON scheduler.backfills (schedule_id, id)
    """,
    """
    CREATE INDEX backfills_due ON scheduler.backfills (available_time) WHERE state = 'RUNNING'
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
    enable_row_level_security(op, "scheduler", "backfills", owner_column="user_id")
    grant_tables(op, "scheduler", "backfills")


def downgrade() -> None:
    op.execute("DROP TABLE scheduler.backfills")
    op.execute(
        "DROP INDEX scheduler.runs_by_backfill, scheduler.runs_held_back, scheduler.runs_open_by_schedule"
    )
    op.execute("ALTER TABLE scheduler.runs DROP COLUMN retry_of")
    op.execute("DROP INDEX scheduler.schedules_stale, scheduler.schedules_due")
    op.execute(
        "ALTER TABLE scheduler.schedules DROP COLUMN missed_fires, DROP COLUMN last_fire_time, DROP COLUMN prompt,"
        " DROP COLUMN prompt_fault_reason, DROP COLUMN prompt_fault_message, DROP COLUMN prompt_stale"
    )
    op.execute("CREATE INDEX schedules_due ON scheduler.schedules (next_due_time) WHERE state = 'ACTIVE'")
