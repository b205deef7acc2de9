"""Accounts, refresh tokens, signing keys and throttles.

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
    CREATE TABLE auth.idempotency_keys (
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
    CREATE INDEX idempotency_keys_expire_time ON auth.idempotency_keys (expire_time)
    """,
    """
    CREATE TABLE auth.login_failures (
        key BYTEA NOT NULL,
        full_time TIMESTAMP WITH TIME ZONE,
        success_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (key),
        CONSTRAINT login_failures_key CHECK (octet_length(key) = 32)
    )
    """,
    """
    CREATE INDEX login_failures_full_time ON auth.login_failures (full_time)
    """,
    """
    CREATE TABLE auth.organizations (
        id UUID NOT NULL,
        name TEXT NOT NULL,
        personal BOOLEAN NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT organizations_name CHECK (name <> '')
    )
    """,
    """
    CREATE TABLE auth.outbox (
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
    CREATE INDEX outbox_unpublished ON auth.outbox (id) WHERE publish_time IS NULL
    """,
    """
    CREATE TABLE auth.signing_keys (
        kid TEXT NOT NULL,
        public_key BYTEA NOT NULL,
        sealed_private_key BYTEA NOT NULL,
        not_before TIMESTAMP WITH TIME ZONE NOT NULL,
        retire_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (kid),
        CONSTRAINT signing_keys_public_key CHECK (octet_length(public_key) = 32)
    )
    """,
    """
    CREATE UNIQUE INDEX signing_keys_newest ON auth.signing_keys ((retire_time IS NULL)) WHERE retire_time IS NULL
    """,
    """
    CREATE TABLE auth.users (
        id UUID NOT NULL,
        organization_id UUID NOT NULL,
        email TEXT NOT NULL,
        username TEXT NOT NULL,
        full_name TEXT NOT NULL,
        role TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        deactivate_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT users_email CHECK (email = lower(email) AND email LIKE '%_@_%'),
        CONSTRAINT users_username CHECK (username ~ '^[A-Za-z0-9][A-Za-z0-9._-]{2,63}$'),
        CONSTRAINT users_full_name CHECK (length(full_name) <= 200),
        CONSTRAINT users_role CHECK (role IN ('admin','user','viewer')),
        CONSTRAINT users_password_hash CHECK (password_hash LIKE '$2b$%'),
        FOREIGN KEY(organization_id) REFERENCES auth.organizations (id)
    )
    """,
    """
    CREATE UNIQUE INDEX users_by_email ON auth.users (lower(email))
    """,
    """
    CREATE INDEX users_by_organization ON auth.users (organization_id, id)
    """,
    """
    CREATE UNIQUE INDEX users_by_username ON auth.users (lower(username))
    """,
    """
    CREATE TABLE auth.memberships (
        organization_id UUID NOT NULL,
        user_id UUID NOT NULL,
        role TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (organization_id, user_id),
        CONSTRAINT memberships_role CHECK (role IN ('owner','member')),
        FOREIGN KEY(organization_id) REFERENCES auth.organizations (id),
        FOREIGN KEY(user_id) REFERENCES auth.users (id)
    )
    """,
    """
    CREATE INDEX memberships_by_user ON auth.memberships (user_id)
    """,
    """
    CREATE TABLE auth.refresh_families (
        id UUID NOT NULL,
        user_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        revoke_time TIMESTAMP WITH TIME ZONE,
        revoke_reason TEXT,
        PRIMARY KEY (id),
        CONSTRAINT refresh_families_reason CHECK (revoke_reason IN ('LOGOUT','REUSED')),
        CONSTRAINT refresh_families_revoked CHECK ((revoke_time IS NULL) = (revoke_reason IS NULL)),
        FOREIGN KEY(user_id) REFERENCES auth.users (id)
    )
    """,
    """
    CREATE INDEX refresh_families_by_user ON auth.refresh_families (user_id)
    """,
    """
    CREATE INDEX refresh_families_expire_time ON auth.refresh_families (expire_time)
    """,
    """
    CREATE TABLE auth.refresh_tokens (
        id UUID NOT NULL,
        token_hash BYTEA NOT NULL,
        family_id UUID NOT NULL,
        user_id UUID NOT NULL,
        organization_id UUID NOT NULL,
        created_by BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        use_time TIMESTAMP WITH TIME ZONE,
        used_by BYTEA,
        PRIMARY KEY (id),
        CONSTRAINT refresh_tokens_hash UNIQUE (token_hash),
        CONSTRAINT refresh_tokens_hash_length CHECK (octet_length(token_hash) = 32),
        CONSTRAINT refresh_tokens_used CHECK ((use_time IS NULL) = (used_by IS NULL)),
        CONSTRAINT refresh_tokens_expire_time CHECK (expire_time > create_time),
        FOREIGN KEY(family_id) REFERENCES auth.refresh_families (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX refresh_tokens_by_family ON auth.refresh_tokens (family_id)
    """,
    """
    CREATE INDEX refresh_tokens_expire_time ON auth.refresh_tokens (expire_time)
    """,
    """
    CREATE UNIQUE INDEX refresh_tokens_unused ON auth.refresh_tokens (family_id) WHERE use_time IS NULL
    """,
)

# What is looked up before anybody is verified, or belongs to nobody: for the system role alone.
_SYSTEM_ONLY = ("login_failures", "signing_keys")
_PUBLIC_COLUMNS = (
    "id, organization_id, email, username, full_name, role, deactivate_time, create_time, update_time"
)


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    enable_row_level_security(op, "auth", "organizations", organization_column="id")
    enable_row_level_security(op, "auth", "users", owner_column="id")
    enable_row_level_security(op, "auth", "outbox")
    for table in ("memberships", "refresh_families", "refresh_tokens"):
        enable_row_level_security(op, "auth", table, owner_column="user_id")
    enable_row_level_security(op, "auth", "idempotency_keys", owner_column="caller_id")
    for table in _SYSTEM_ONLY:
        op.execute(f"ALTER TABLE auth.{table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE auth.{table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON auth.{table} TO auth_system USING (true) WITH CHECK (true)")
    grant_tables(op, "auth", "organizations", "memberships", application="SELECT")
    # Not the hash of the password, not even one's own.
    grant_tables(op, "auth", "users", application=f"SELECT ({_PUBLIC_COLUMNS})")
    grant_tables(op, "auth", "outbox", application="INSERT")
    grant_tables(op, "auth", "idempotency_keys")
    grant_tables(op, "auth", "refresh_families", "refresh_tokens", *_SYSTEM_ONLY, application="")


def downgrade() -> None:
    for table in (
        *("refresh_tokens", "refresh_families", "memberships", "users", "organizations"),
        *_SYSTEM_ONLY,
        *("outbox", "idempotency_keys"),
    ):
        op.execute(f"DROP TABLE auth.{table}")
