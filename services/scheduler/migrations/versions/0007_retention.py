"""Runs are removed some time after their end.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX runs_ended ON scheduler.runs (end_time) WHERE end_time IS NOT NULL")


def downgrade() -> None:
    op.execute("DROP INDEX scheduler.runs_ended")
