"""A turn keeps the request id of the call that sent its message: what its driver asks of executors carries it.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE session.turns ADD COLUMN request_id TEXT DEFAULT '' NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE session.turns DROP COLUMN request_id")
