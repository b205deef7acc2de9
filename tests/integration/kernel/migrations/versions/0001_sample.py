"""Notes, which belong to a person, and the two tables that every schema has.

Revision ID: 0001
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables
from tests.integration.kernel.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
    grant_tables(op, "sample", "notes", "idempotency_keys", "outbox")
    enable_row_level_security(op, "sample", "notes", owner_column="user_id")
    enable_row_level_security(op, "sample", "idempotency_keys")
    enable_row_level_security(op, "sample", "outbox")
