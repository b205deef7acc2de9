"""Sessions, their log, and what is projected from it.

Revision ID: 0001
"""

from alembic import op

from services.kernel.db.migrations import enable_row_level_security, grant_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = (
    """
    CREATE TABLE session.idempotency_keys (
        organization_id UUID NOT NULL,
        caller_id UUID NOT NULL,
        method TEXT NOT NULL,
        request_id TEXT NOT NULL,
        request_hash BYTEA NOT NULL,
        response BYTEA,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (organization_id, caller_id, method, request_id)
    )
    """,
    """
    CREATE INDEX idempotency_keys_expire_time ON session.idempotency_keys (expire_time)
    """,
    """
    CREATE TABLE session.outbox (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        topic TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        publish_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX outbox_unpublished ON session.outbox (id) WHERE publish_time IS NULL
    """,
    """
    CREATE TABLE session.sessions (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        name TEXT NOT NULL,
        mode TEXT NOT NULL,
        state TEXT NOT NULL,
        sdk_options JSONB NOT NULL,
        labels JSONB NOT NULL,
        permission_timeout INTERVAL NOT NULL,
        turn_timeout INTERVAL NOT NULL,
        messages BIGINT DEFAULT '0' NOT NULL,
        tool_calls BIGINT DEFAULT '0' NOT NULL,
        turns BIGINT DEFAULT '0' NOT NULL,
        errors BIGINT DEFAULT '0' NOT NULL,
        retries BIGINT DEFAULT '0' NOT NULL,
        permission_checks BIGINT DEFAULT '0' NOT NULL,
        input_tokens BIGINT DEFAULT '0' NOT NULL,
        output_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_read_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
        cost_usd NUMERIC(14, 6) DEFAULT '0' NOT NULL,
        duration_ms BIGINT DEFAULT '0' NOT NULL,
        current_turn_id UUID,
        cli_session_id UUID,
        offline_model BOOLEAN DEFAULT false NOT NULL,
        version BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        CONSTRAINT sessions_state CHECK (state IN
            ('CREATED','CONNECTING','ACTIVE','WAITING','PROCESSING','PAUSED','COMPLETED','FAILED','TERMINATED','ARCHIVED')),
        CONSTRAINT sessions_mode CHECK (mode IN ('INTERACTIVE','BACKGROUND','FORKED'))
    )
    """,
    """
    CREATE INDEX sessions_by_owner ON session.sessions (organization_id, user_id, id)
    """,
    """
    CREATE INDEX sessions_deleted ON session.sessions (delete_time) WHERE delete_time IS NOT NULL
    """,
    """
    CREATE TABLE session.event_contents (
        content_id UUID NOT NULL,
        session_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        size_bytes BIGINT NOT NULL,
        sha256 TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (content_id),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX event_contents_by_session ON session.event_contents (session_id)
    """,
    """
    CREATE TABLE session.events (
        organization_id UUID NOT NULL,
        session_id UUID NOT NULL,
        sequence BIGINT NOT NULL,
        turn_id UUID,
        kind TEXT NOT NULL,
        payload BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        CONSTRAINT events_pkey PRIMARY KEY (session_id, sequence),
        CONSTRAINT events_sequence CHECK (sequence > 0),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE session.messages (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        turn_id UUID NOT NULL,
        sequence BIGINT NOT NULL,
        role TEXT NOT NULL,
        type TEXT NOT NULL,
        content_text TEXT,
        content_content_id UUID,
        content_size_bytes BIGINT,
        content_sha256 TEXT,
        model TEXT DEFAULT '' NOT NULL,
        parent_tool_use_id TEXT DEFAULT '' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT messages_sequence UNIQUE (session_id, sequence),
        CONSTRAINT messages_role CHECK (role IN ('USER','ASSISTANT')),
        CONSTRAINT messages_type CHECK (type IN ('TEXT','THINKING')),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX messages_by_turn ON session.messages (turn_id, sequence)
    """,
    """
    CREATE TABLE session.permission_requests (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        turn_id UUID NOT NULL,
        tool_use_id TEXT NOT NULL,
        tool_name TEXT NOT NULL,
        input_text TEXT,
        input_content_id UUID,
        input_size_bytes BIGINT,
        input_sha256 TEXT,
        input_hash TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT DEFAULT '' NOT NULL,
        resolved_by UUID,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        resolve_time TIMESTAMP WITH TIME ZONE,
        consume_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        CONSTRAINT permission_requests_state CHECK (state IN
            ('PENDING','ALLOWED','DENIED','EXPIRED','CANCELLED')),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX permission_requests_by_owner ON session.permission_requests (organization_id, user_id,
            id)
    """,
    """
    CREATE INDEX permission_requests_by_session ON session.permission_requests (session_id, id)
    """,
    """
    CREATE INDEX permission_requests_pending ON session.permission_requests (expire_time) WHERE state =
            'PENDING'
    """,
    """
    CREATE TABLE session.session_heads (
        session_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        last_sequence BIGINT DEFAULT '0' NOT NULL,
        lease_holder TEXT,
        lease_epoch BIGINT DEFAULT '0' NOT NULL,
        lease_expire_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (session_id),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
     WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE session.tool_calls (
        session_id UUID NOT NULL,
        tool_use_id TEXT NOT NULL,
        organization_id UUID NOT NULL,
        turn_id UUID NOT NULL,
        attempt INTEGER NOT NULL,
        tool_name TEXT NOT NULL,
        input_text TEXT,
        input_content_id UUID,
        input_size_bytes BIGINT,
        input_sha256 TEXT,
        input_hash TEXT NOT NULL,
        parent_tool_use_id TEXT DEFAULT '' NOT NULL,
        state TEXT NOT NULL,
        decision_allowed BOOLEAN,
        decision_source TEXT,
        decision_reason TEXT,
        decision_user_id UUID,
        result_text TEXT,
        result_content_id UUID,
        result_size_bytes BIGINT,
        result_sha256 TEXT,
        result_is_error BOOLEAN,
        sequence BIGINT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT tool_calls_pkey PRIMARY KEY (session_id, tool_use_id),
        CONSTRAINT tool_calls_state CHECK (state IN
            ('REQUESTED','WAITING','RUNNING','SUCCEEDED','FAILED','DENIED','POSSIBLY_RUN','ABANDONED')),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX tool_calls_by_sequence ON session.tool_calls (session_id, sequence)
    """,
    """
    CREATE INDEX tool_calls_by_turn ON session.tool_calls (turn_id, sequence)
    """,
    """
    CREATE TABLE session.turns (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        number BIGINT NOT NULL,
        state TEXT NOT NULL,
        message_id UUID NOT NULL,
        message_text TEXT,
        message_content_id UUID,
        message_size_bytes BIGINT,
        message_sha256 TEXT,
        result_text TEXT,
        result_content_id UUID,
        result_size_bytes BIGINT,
        result_sha256 TEXT,
        failure_reason TEXT,
        failure_message TEXT,
        input_tokens BIGINT DEFAULT '0' NOT NULL,
        output_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_read_tokens BIGINT DEFAULT '0' NOT NULL,
        cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
        cost_usd NUMERIC(14, 6) DEFAULT '0' NOT NULL,
        tool_calls BIGINT DEFAULT '0' NOT NULL,
        model_calls INTEGER DEFAULT '0' NOT NULL,
        structured_output_json TEXT DEFAULT '' NOT NULL,
        first_sequence BIGINT NOT NULL,
        last_sequence BIGINT NOT NULL,
        attempt INTEGER DEFAULT '0' NOT NULL,
        lost_attempts INTEGER DEFAULT '0' NOT NULL,
        applied_offset BIGINT DEFAULT '0' NOT NULL,
        executor_id TEXT,
        executor_target TEXT,
        executor_incarnation UUID,
        heartbeat_time TIMESTAMP WITH TIME ZONE,
        parked BOOLEAN DEFAULT false NOT NULL,
        interrupt_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        active_ms BIGINT DEFAULT '0' NOT NULL,
        active_since TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        CONSTRAINT turns_number UNIQUE (session_id, number),
        CONSTRAINT turns_state CHECK (state IN
            ('QUEUED','STARTING','RUNNING','WAITING','SUCCEEDED','FAILED','INTERRUPTED','TIMED_OUT','BUDGET_EXCEEDED')),
        FOREIGN KEY(session_id) REFERENCES session.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE UNIQUE INDEX turns_one_driven ON session.turns (session_id) WHERE state IN
            ('STARTING','RUNNING','WAITING')
    """,
    """
    CREATE INDEX turns_open ON session.turns (session_id, number) WHERE state IN
            ('QUEUED','STARTING','RUNNING','WAITING')
    """,
)

# The rows of a person, and those that belong to a session.
_OWNED = ("sessions", "turns", "permission_requests")
_OF_SESSIONS = ("session_heads", "events", "messages", "tool_calls", "event_contents", "outbox")


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    for table in _OWNED:
        enable_row_level_security(op, "session", table, owner_column="user_id")
    for table in _OF_SESSIONS:
        enable_row_level_security(op, "session", table)
    # A request id is its caller's alone.
    enable_row_level_security(op, "session", "idempotency_keys", owner_column="caller_id")
    grant_tables(op, "session", *_OWNED, *_OF_SESSIONS, "idempotency_keys")
    # The log is written once.
    op.execute("REVOKE UPDATE, DELETE ON session.events FROM session_application")


def downgrade() -> None:
    for table in (*_OF_SESSIONS, "permission_requests", "turns", "sessions", "idempotency_keys"):
        op.execute(f"DROP TABLE session.{table}")
