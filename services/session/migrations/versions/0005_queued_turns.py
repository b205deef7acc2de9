"""Finds the turns that wait for a place in the order in which they were sent.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX turns_queued ON session.turns (create_time, id) WHERE state = 'QUEUED'")


def downgrade() -> None:
    op.execute("DROP INDEX session.turns_queued")
