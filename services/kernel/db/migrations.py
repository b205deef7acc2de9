"""Alembic for one schema, and the SQL that migrations share.

A service's `migrations/` holds only `versions/`: the environment is here. Roles and schemas are not made here but by
whoever sets up the database: `<schema>_owner` owns the schema and runs migrations, `<schema>_application` and
`<schema>_system` may log in and own nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.kernel.db.database import driver_url

_LOCK_CLASS: Final = 0x41414944  # "AAID": the class of our advisory locks


class Operations(Protocol):
    """The part of Alembic's `op` that is used here."""

    def execute(self, sqltext: str) -> Any:
        """Runs one statement."""
        ...


async def upgrade(
    owner_url: str,
    schema: str,
    script_location: Path | str,
    *,
    revision: str = "head",
    lock_timeout_seconds: float = 5.0,
) -> str | None:
    """Brings a schema to a revision, each step in its own transaction; returns the revision it has then.

    Replicas that start together wait for each other. A statement that cannot get its lock in time fails the
    migration instead of queueing everybody else behind it; run it again.

    Args:
        owner_url: URL of `<schema>_owner`.
        script_location: the service's `migrations` directory.
        lock_timeout_seconds: how long a statement waits for a lock.
    """
    config = Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    engine = create_async_engine(
        driver_url(owner_url),
        poolclass=NullPool,
        connect_args={"server_settings": {"application_name": f"aiagent/{schema}/migrate"}},
    )
    lock = sa.text("SELECT pg_advisory_lock(:class, hashtext(:schema))")
    unlock = sa.text("SELECT pg_advisory_unlock(:class, hashtext(:schema))")
    names = {"class": _LOCK_CLASS, "schema": schema}
    try:
        # The waiting is done on a connection of its own: the migrations' one has a lock timeout.
        async with engine.connect() as guard, engine.connect() as connection:
            await guard.execute(lock, names)
            await guard.commit()
            try:
                await connection.execute(
                    sa.text("SELECT set_config('lock_timeout', :value, false)"),
                    {"value": f"{round(lock_timeout_seconds * 1000)}ms"},
                )
                await connection.commit()
                return await connection.run_sync(_run, config, script, schema, revision)
            finally:
                await guard.execute(unlock, names)
    finally:
        await engine.dispose()


def _run(
    connection: sa.Connection, config: Config, script: ScriptDirectory, schema: str, revision: str
) -> str | None:
    def steps(current: Any, _context: MigrationContext) -> Any:
        return script._upgrade_revs(revision, current)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=None,
            version_table_schema=schema,
            include_schemas=True,
            transaction_per_migration=True,
        )
        with environment.begin_transaction():
            environment.run_migrations()
        return environment.get_context().get_current_revision()


def grant_tables(
    op: Operations, schema: str, *tables: str, application: str = "SELECT, INSERT, UPDATE, DELETE"
) -> None:
    """Gives both roles the use of the schema and of these tables.

    Args:
        application: what the application role may do; the system role may read and write.
    """
    op.execute(
        f"GRANT USAGE ON SCHEMA {_name(schema)} TO {_name(schema + '_application')}, "
        f"{_name(schema + '_system')}"
    )
    for table in tables:
        full = f"{_name(schema)}.{_name(table)}"
        if application:
            op.execute(f"GRANT {application} ON {full} TO {_name(schema + '_application')}")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {full} TO {_name(schema + '_system')}")


def enable_row_level_security(
    op: Operations,
    schema: str,
    table: str,
    *,
    organization_column: str = "organization_id",
    owner_column: str | None = None,
) -> None:
    """Lets the application role see and write only rows of the tenant that `Database.tenant` has set.

    A connection that has set no tenant sees nothing. The system role sees all. The owner is bound too (FORCE), and
    has no policy: migrations that must touch rows do so as the system role.

    Args:
        organization_column: the tenant of a row.
        owner_column: whose row it is; then users see their own rows, and the role `admin` all of the organization.
    """
    full = f"{_name(schema)}.{_name(table)}"
    rule = f"{_name(organization_column)} = {_setting('organization_id')}"
    if owner_column is not None:
        rule += (
            f" AND ({_name(owner_column)} = {_setting('user_id')}"
            " OR (SELECT current_setting('aiagent.role', true)) = 'admin')"
        )
    op.execute(f"ALTER TABLE {full} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {full} FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant ON {full} TO {_name(schema + '_application')} USING ({rule}) WITH CHECK ({rule})"
    )
    op.execute(
        f"CREATE POLICY system ON {full} TO {_name(schema + '_system')} USING (true) WITH CHECK (true)"
    )


def _setting(name: str) -> str:
    # In a sub-select it is computed once for a statement. After a transaction that set it, a setting is '', not NULL.
    return f"(SELECT nullif(current_setting('aiagent.{name}', true), '')::uuid)"


def _name(text: str) -> str:
    if not text.replace("_", "").isalnum():
        raise ValueError(f"not a plain SQL name: {text!r}")
    return f'"{text}"'
