"""The tables of the schema `auth`, as the migrations build them.

Tenant rows carry their organization, and their owner where they have one. What is looked up before anybody is
verified (`refresh_…`, `login_failures`, `signing_keys`) is for the system role alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP, UUID

from services.kernel.db.idempotency import idempotency_table
from services.kernel.db.outbox import outbox_table

SCHEMA = "auth"
metadata = sa.MetaData(schema=SCHEMA)

_TIME = TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=True)

organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("personal", sa.Boolean, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.CheckConstraint("name <> ''", name="organizations_name"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    # The organization the user works in.
    sa.Column("organization_id", _ID, sa.ForeignKey("auth.organizations.id"), nullable=False),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("full_name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    # Not for the application role: see the migration.
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("deactivate_time", _TIME),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("update_time", _TIME, nullable=False),
    sa.CheckConstraint("email = lower(email) AND email LIKE '%_@_%'", name="users_email"),
    sa.CheckConstraint("username ~ '^[A-Za-z0-9][A-Za-z0-9._-]{2,63}$'", name="users_username"),
    sa.CheckConstraint("length(full_name) <= 200", name="users_full_name"),
    sa.CheckConstraint("role IN ('admin','user','viewer')", name="users_role"),
    sa.CheckConstraint("password_hash LIKE '$2b$%'", name="users_password_hash"),
    sa.Index("users_by_email", sa.text("lower(email)"), unique=True),
    sa.Index("users_by_username", sa.text("lower(username)"), unique=True),
    sa.Index("users_by_organization", "organization_id", "id"),
)

memberships = sa.Table(
    "memberships",
    metadata,
    sa.Column("organization_id", _ID, sa.ForeignKey("auth.organizations.id"), primary_key=True),
    sa.Column("user_id", _ID, sa.ForeignKey("auth.users.id"), primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.CheckConstraint("role IN ('owner','member')", name="memberships_role"),
    sa.Index("memberships_by_user", "user_id"),
)

refresh_families = sa.Table(
    "refresh_families",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("user_id", _ID, sa.ForeignKey("auth.users.id"), nullable=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    # When the last of its tokens expires.
    sa.Column("expire_time", _TIME, nullable=False),
    sa.Column("revoke_time", _TIME),
    sa.Column("revoke_reason", sa.Text),
    sa.CheckConstraint("revoke_reason IN ('LOGOUT','REUSED')", name="refresh_families_reason"),
    sa.CheckConstraint("(revoke_time IS NULL) = (revoke_reason IS NULL)", name="refresh_families_revoked"),
    sa.Index("refresh_families_by_user", "user_id"),
    sa.Index("refresh_families_expire_time", "expire_time"),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("token_hash", BYTEA, nullable=False),
    sa.Column(
        "family_id", _ID, sa.ForeignKey("auth.refresh_families.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("organization_id", _ID, nullable=False),
    sa.Column("created_by", BYTEA, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("expire_time", _TIME, nullable=False),
    sa.Column("use_time", _TIME),
    sa.Column("used_by", BYTEA),
    sa.UniqueConstraint("token_hash", name="refresh_tokens_hash"),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="refresh_tokens_hash_length"),
    sa.CheckConstraint("(use_time IS NULL) = (used_by IS NULL)", name="refresh_tokens_used"),
    sa.CheckConstraint("expire_time > create_time", name="refresh_tokens_expire_time"),
    # A family has one good token at a time.
    sa.Index("refresh_tokens_unused", "family_id", unique=True, postgresql_where=sa.text("use_time IS NULL")),
    sa.Index("refresh_tokens_by_family", "family_id"),
    sa.Index("refresh_tokens_expire_time", "expire_time"),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.Text, primary_key=True),
    sa.Column("public_key", BYTEA, nullable=False),
    sa.Column("sealed_private_key", BYTEA, nullable=False),
    sa.Column("not_before", _TIME, nullable=False),
    sa.Column("retire_time", _TIME),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.CheckConstraint("octet_length(public_key) = 32", name="signing_keys_public_key"),
    # There is one newest key, whoever adds it.
    sa.Index(
        "signing_keys_newest",
        sa.text("(retire_time IS NULL)"),
        unique=True,
        postgresql_where=sa.text("retire_time IS NULL"),
    ),
)

login_failures = sa.Table(
    "login_failures",
    metadata,
    sa.Column("key", BYTEA, primary_key=True),
    sa.Column("full_time", _TIME),
    sa.Column("success_time", _TIME),
    sa.CheckConstraint("octet_length(key) = 32", name="login_failures_key"),
    sa.Index("login_failures_full_time", "full_time"),
)

idempotency_keys = idempotency_table(metadata, SCHEMA)
outbox = outbox_table(metadata, SCHEMA)
