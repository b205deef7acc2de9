"""Request ids that live with a session go with it; a column that nothing writes goes.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TOUCHED = ("idempotency_keys", "sessions", "turns")


def upgrade() -> None:
    op.execute(
        "ALTER TABLE session.idempotency_keys"
        " ADD COLUMN session_id UUID REFERENCES session.sessions (id) ON DELETE CASCADE"
        " DEFERRABLE INITIALLY DEFERRED"
    )
    # The owner has no policy on rows; it may lift the force for the length of this transaction, in which the tables
    # are locked.
    for table in _TOUCHED:
        op.execute(f"ALTER TABLE session.{table} NO FORCE ROW LEVEL SECURITY")
    # The answer of such an id is what it made: the 16 bytes of a UUID.
    op.execute(
        "UPDATE session.idempotency_keys AS k SET session_id = made.id FROM session.sessions AS made"
        " WHERE k.method = 'CreateSession' AND uuid_send(made.id) = k.response"
    )
    op.execute(
        "UPDATE session.idempotency_keys AS k SET session_id = made.session_id FROM session.turns AS made"
        " WHERE k.method = 'SendMessage' AND uuid_send(made.id) = k.response"
    )
    op.execute("DELETE FROM session.idempotency_keys WHERE expire_time IS NULL AND session_id IS NULL")
    # Foreign keys are checked now: a table with checks waiting cannot be altered.
    op.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for table in _TOUCHED:
        op.execute(f"ALTER TABLE session.{table} FORCE ROW LEVEL SECURITY")
    op.execute("CREATE INDEX idempotency_keys_by_session ON session.idempotency_keys (session_id)")
    op.execute("ALTER TABLE session.turns DROP COLUMN tool_calls")


def downgrade() -> None:
    op.execute("ALTER TABLE session.turns ADD COLUMN tool_calls BIGINT DEFAULT '0' NOT NULL")
    op.execute("ALTER TABLE session.idempotency_keys DROP COLUMN session_id")
