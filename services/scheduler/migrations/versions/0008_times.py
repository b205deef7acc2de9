"""What was never changed has one time, not two that are a microsecond apart.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = ("tasks", "schedules", "runs")


def _set(function: str) -> None:
    for table in _TABLES:
        for column in ("create_time", "update_time"):
            op.execute(f"ALTER TABLE scheduler.{table} ALTER COLUMN {column} SET DEFAULT {function}()")


def upgrade() -> None:
    _set("statement_timestamp")


def downgrade() -> None:
    _set("clock_timestamp")
