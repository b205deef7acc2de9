"""The tables of the schema `session`, as the migrations build them.

Every row carries its organization; the rows a person owns carry the owner too. Row-level security of the
application role rests on those two columns.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP, UUID

from services.kernel.db.idempotency import idempotency_table
from services.kernel.db.outbox import outbox_table

SCHEMA = "session"
metadata = sa.MetaData(schema=SCHEMA)

_TIME = TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=True)


def _content(prefix: str) -> list[sa.Column[Any]]:
    """The four columns of a `Content`: the text in place, and where the whole of it lies when it is large."""
    return [
        sa.Column(f"{prefix}_text", sa.Text),
        sa.Column(f"{prefix}_content_id", _ID),
        sa.Column(f"{prefix}_size_bytes", sa.BigInteger),
        sa.Column(f"{prefix}_sha256", sa.Text),
    ]


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _usage() -> list[sa.Column[Any]]:
    return [
        *[
            _counter(name)
            for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        ],
        sa.Column("cost_usd", sa.Numeric(14, 6), nullable=False, server_default="0"),
    ]


def _session_reference() -> sa.Column[Any]:
    return sa.Column(
        "session_id", _ID, sa.ForeignKey("session.sessions.id", ondelete="CASCADE"), nullable=False
    )


sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("sdk_options", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("permission_timeout", sa.Interval, nullable=False),
    sa.Column("turn_timeout", sa.Interval, nullable=False),
    _counter("messages"),
    _counter("tool_calls"),
    _counter("turns"),
    _counter("errors"),
    _counter("retries"),
    _counter("permission_checks"),
    *_usage(),
    _counter("duration_ms"),
    sa.Column("current_turn_id", _ID),
    # The CLI's own session id: what a later agent process resumes the conversation from.
    sa.Column("cli_session_id", _ID),
    sa.Column("offline_model", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    # Set by DeleteSession: invisible from then on; a driver ends what runs, then the row goes.
    sa.Column("delete_time", _TIME),
    sa.CheckConstraint(
        "state IN ('CREATED','CONNECTING','ACTIVE','WAITING','PROCESSING','PAUSED','COMPLETED','FAILED',"
        "'TERMINATED','ARCHIVED')",
        name="sessions_state",
    ),
    sa.CheckConstraint("mode IN ('INTERACTIVE','BACKGROUND','FORKED')", name="sessions_mode"),
    sa.Index("sessions_by_owner", "organization_id", "user_id", "id"),
    sa.Index("sessions_deleted", "delete_time", postgresql_where=sa.text("delete_time IS NOT NULL")),
)

session_heads = sa.Table(
    "session_heads",
    metadata,
    sa.Column("session_id", _ID, sa.ForeignKey("session.sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_expire_time", _TIME),
    # How many entries the session's transcripts have.
    _counter("transcript_position"),
    # Locked by every append and updated in place: room on the page keeps such updates off the indexes (HOT).
    postgresql_with={"fillfactor": "50"},
)

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    _session_reference(),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message_id", _ID, nullable=False),
    # Of the call that sent the message; the calls and logs of whoever drives the turn carry it.
    sa.Column("request_id", sa.Text, nullable=False, server_default=""),
    *_content("message"),
    *_content("result"),
    sa.Column("failure_reason", sa.Text),
    sa.Column("failure_message", sa.Text),
    *_usage(),
    sa.Column("model_calls", sa.Integer, nullable=False, server_default="0"),
    sa.Column("structured_output_json", sa.Text, nullable=False, server_default=""),
    sa.Column("first_sequence", sa.BigInteger, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    # The attempt: stored before the executor is first called, so that a successor knows where to ask.
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # Attempts that were lost without fault of the agent; parking loses none.
    sa.Column("lost_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("applied_offset", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("executor_id", sa.Text),
    sa.Column("executor_target", sa.Text),
    sa.Column("executor_incarnation", _ID),
    sa.Column("heartbeat_time", _TIME),
    # A parked turn waits for a person without a process.
    sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("interrupt_time", _TIME),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("start_time", _TIME),
    # Time spent outside WAITING: what the turn's timeout is measured against.
    _counter("active_ms"),
    sa.Column("active_since", _TIME),
    sa.Column("end_time", _TIME),
    sa.UniqueConstraint("session_id", "number", name="turns_number"),
    sa.CheckConstraint(
        "state IN ('QUEUED','STARTING','RUNNING','WAITING','SUCCEEDED','FAILED','INTERRUPTED','TIMED_OUT',"
        "'BUDGET_EXCEEDED')",
        name="turns_state",
    ),
    # Two turns of one session never run at once, whatever the code above believes.
    sa.Index(
        "turns_one_driven",
        "session_id",
        unique=True,
        postgresql_where=sa.text("state IN ('STARTING','RUNNING','WAITING')"),
    ),
    sa.Index("turns_queued", "create_time", "id", postgresql_where=sa.text("state = 'QUEUED'")),
    sa.Index(
        "turns_open",
        "session_id",
        "number",
        postgresql_where=sa.text("state IN ('QUEUED','STARTING','RUNNING','WAITING')"),
    ),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("organization_id", _ID, nullable=False),
    _session_reference(),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("turn_id", _ID),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payload", BYTEA, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.PrimaryKeyConstraint("session_id", "sequence", name="events_pkey"),
    sa.CheckConstraint("sequence > 0", name="events_sequence"),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    _session_reference(),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("turn_id", _ID, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    *_content("content"),
    sa.Column("model", sa.Text, nullable=False, server_default=""),
    sa.Column("parent_tool_use_id", sa.Text, nullable=False, server_default=""),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.UniqueConstraint("session_id", "sequence", name="messages_sequence"),
    sa.CheckConstraint("role IN ('USER','ASSISTANT')", name="messages_role"),
    sa.CheckConstraint("type IN ('TEXT','THINKING')", name="messages_type"),
    sa.Index("messages_by_turn", "turn_id", "sequence"),
)

tool_calls = sa.Table(
    "tool_calls",
    metadata,
    _session_reference(),
    sa.Column("tool_use_id", sa.Text, nullable=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("turn_id", _ID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("tool_name", sa.Text, nullable=False),
    *_content("input"),
    sa.Column("input_hash", sa.Text, nullable=False),
    sa.Column("parent_tool_use_id", sa.Text, nullable=False, server_default=""),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("decision_allowed", sa.Boolean),
    sa.Column("decision_source", sa.Text),
    sa.Column("decision_reason", sa.Text),
    sa.Column("decision_user_id", _ID),
    *_content("result"),
    sa.Column("result_is_error", sa.Boolean),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("end_time", _TIME),
    sa.PrimaryKeyConstraint("session_id", "turn_id", "attempt", "tool_use_id", name="tool_calls_pkey"),
    sa.CheckConstraint(
        "state IN ('REQUESTED','WAITING','RUNNING','SUCCEEDED','FAILED','DENIED','POSSIBLY_RUN','ABANDONED')",
        name="tool_calls_state",
    ),
    sa.Index("tool_calls_by_sequence", "session_id", "sequence"),
    sa.Index("tool_calls_by_turn", "turn_id", "sequence"),
)

permission_requests = sa.Table(
    "permission_requests",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    _session_reference(),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("turn_id", _ID, nullable=False),
    sa.Column("tool_use_id", sa.Text, nullable=False),
    sa.Column("tool_name", sa.Text, nullable=False),
    *_content("input"),
    sa.Column("input_hash", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("resolved_by", _ID),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("expire_time", _TIME, nullable=False),
    sa.Column("resolve_time", _TIME),
    # Set when an allowed call took the answer: an answer is used once.
    sa.Column("consume_time", _TIME),
    sa.CheckConstraint(
        "state IN ('PENDING','ALLOWED','DENIED','EXPIRED','CANCELLED')", name="permission_requests_state"
    ),
    sa.Index("permission_requests_by_session", "session_id", "id"),
    sa.Index("permission_requests_by_owner", "organization_id", "user_id", "id"),
    sa.Index("permission_requests_pending", "expire_time", postgresql_where=sa.text("state = 'PENDING'")),
)

event_contents = sa.Table(
    "event_contents",
    metadata,
    sa.Column("content_id", _ID, primary_key=True),
    _session_reference(),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Index("event_contents_by_session", "session_id"),
)

transcript_entries = sa.Table(
    "transcript_entries",
    metadata,
    _session_reference(),
    sa.Column("organization_id", _ID, nullable=False),
    # Gapless within the session, over all its transcripts.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("cli_session_id", _ID, nullable=False),
    sa.Column("subpath", sa.Text, nullable=False),
    sa.Column("entry_uuid", _ID, nullable=False),
    # JSON as text: JSONB would refuse NUL, and change what is read back.
    sa.Column("entry", sa.Text, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.PrimaryKeyConstraint("session_id", "position", name="transcript_entries_pkey"),
    sa.UniqueConstraint(
        "session_id", "cli_session_id", "subpath", "entry_uuid", name="transcript_entries_uuid"
    ),
    sa.CheckConstraint("position > 0", name="transcript_entries_position"),
)

outbox = outbox_table(metadata, SCHEMA)
idempotency_keys = idempotency_table(
    metadata,
    SCHEMA,
    # An id that lives as long as a session goes with its row. Deferred: CreateSession writes the id first.
    sa.Column(
        "session_id",
        _ID,
        sa.ForeignKey("session.sessions.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
    ),
    sa.Index("idempotency_keys_by_session", "session_id"),
)
