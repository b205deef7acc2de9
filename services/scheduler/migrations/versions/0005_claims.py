"""When the next run may be had that waits for its time.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX runs_available ON scheduler.runs (available_time) WHERE state = 'QUEUED'")


def downgrade() -> None:
    op.execute("DROP INDEX scheduler.runs_available")
