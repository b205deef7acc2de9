"""How often the attempt under way at a run was taken over from a worker that did not give it back.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE scheduler.runs ADD COLUMN take_overs INTEGER DEFAULT '0' NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE scheduler.runs DROP COLUMN take_overs")
