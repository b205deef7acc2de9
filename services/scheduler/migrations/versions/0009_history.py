"""A run names the schedule that made it, also when that is gone: removing one writes to none of its runs.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE scheduler.runs DROP CONSTRAINT runs_schedule_id_fkey")


def downgrade() -> None:
    # Row-level security binds the owner too, and would show no row.
    for table in ("runs", "schedules"):
        op.execute(f"ALTER TABLE scheduler.{table} NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "UPDATE scheduler.runs AS r SET schedule_id = NULL WHERE schedule_id IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM scheduler.schedules AS s WHERE s.id = r.schedule_id)"
    )
    for table in ("runs", "schedules"):
        op.execute(f"ALTER TABLE scheduler.{table} FORCE ROW LEVEL SECURITY")
    op.execute(
        "ALTER TABLE scheduler.runs ADD CONSTRAINT runs_schedule_id_fkey"
        " FOREIGN KEY (schedule_id) REFERENCES scheduler.schedules (id) ON DELETE SET NULL"
    )
