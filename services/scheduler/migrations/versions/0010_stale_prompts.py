"""Stale prompts of every state, from one organization to the next.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX scheduler.schedules_stale")
    op.execute(
        "CREATE INDEX schedules_stale ON scheduler.schedules (organization_id, next_due_time) WHERE prompt_stale"
    )


def downgrade() -> None:
    op.execute("DROP INDEX scheduler.schedules_stale")
    op.execute(
        "CREATE INDEX schedules_stale ON scheduler.schedules (next_due_time) WHERE state = 'ACTIVE' AND prompt_stale"
    )
