"""Transcripts of agents.

Revision ID: 0002
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A default that is a constant rewrites no row.
    op.execute("ALTER TABLE session.session_heads ADD COLUMN transcript_position BIGINT DEFAULT '0' NOT NULL")
    op.execute(
        """
        CREATE TABLE session.transcript_entries (
            session_id UUID NOT NULL,
            organization_id UUID NOT NULL,
            position BIGINT NOT NULL,
            cli_session_id UUID NOT NULL,
            subpath TEXT NOT NULL,
            entry_uuid UUID NOT NULL,
            entry TEXT NOT NULL,
            create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT transcript_entries_pkey PRIMARY KEY (session_id, position),
            CONSTRAINT transcript_entries_uuid UNIQUE (session_id, cli_session_id, subpath, entry_uuid),
            CONSTRAINT transcript_entries_position CHECK (position > 0),
            FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
        )
        """
    )
    enable_row_level_security(op, "session", "transcript_entries")
    # Only executors write and read transcripts, for whomever they work: callers need nothing here.
    grant_tables(op, "session", "transcript_entries", application="")


def downgrade() -> None:
    op.execute("DROP TABLE session.transcript_entries")
    op.execute("ALTER TABLE session.session_heads DROP COLUMN transcript_position")
