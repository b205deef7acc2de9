"""A tool call is one of an attempt of a turn: an id that the model uses again in a later one has a row of its own.

Rolling upgrades: replicas of before insert as before (on any conflict nothing), and their updates name a call by its
session and id alone; they reach one row more only where an id is used again while they still run. The key is built
while the table is locked: seconds for each few million calls, for which what is written waits.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE session.tool_calls DROP CONSTRAINT tool_calls_pkey,"
        " ADD CONSTRAINT tool_calls_pkey PRIMARY KEY (session_id, turn_id, attempt, tool_use_id)"
    )


def downgrade() -> None:
    # Of calls with one id the first stays, as it would have without this revision. The owner has no policy on rows.
    op.execute("ALTER TABLE session.tool_calls NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "DELETE FROM session.tool_calls AS later USING session.tool_calls AS first"
        " WHERE later.session_id = first.session_id AND later.tool_use_id = first.tool_use_id"
        " AND later.sequence > first.sequence"
    )
    op.execute("ALTER TABLE session.tool_calls FORCE ROW LEVEL SECURITY")
    op.execute(
        "ALTER TABLE session.tool_calls DROP CONSTRAINT tool_calls_pkey,"
        " ADD CONSTRAINT tool_calls_pkey PRIMARY KEY (session_id, tool_use_id)"
    )
