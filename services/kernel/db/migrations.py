"""Alembic for one schema: run by its owner role, one at a time, never waiting long for a lock."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


def _config(script_location: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    return config


async def upgrade(owner_url: str, schema: str, script_location: Path, revision: str = "head") -> None:
    """Brings a schema to a revision.

    Two that start at once run one after the other; the second finds nothing to do.

    Args:
        owner_url: `postgresql+asyncpg://` URL of the role that owns the schema.
        schema: The schema.
        script_location: The directory that holds `versions/`.
        revision: The revision to reach.
    """
    engine = create_async_engine(owner_url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade, schema, script_location, revision)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, schema: str, script_location: Path, revision: str) -> None:
    config = _config(script_location)
    script = ScriptDirectory(str(script_location))

    def steps(current: Any, _: MigrationContext) -> Any:
        return script._upgrade_revs(revision, current)

    connection.execute(sa.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"migrate:{schema}"})
    connection.execute(sa.text("SET lock_timeout = '5s'"))
    connection.commit()
    try:
        with EnvironmentContext(config, script, fn=steps, destination_rev=revision) as environment:
            environment.configure(
                connection=connection,
                version_table="alembic_version",
                version_table_schema=schema,
                transaction_per_migration=True,
            )
            with environment.begin_transaction():
                environment.run_migrations()
    finally:
        connection.rollback()
        connection.execute(
            sa.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": f"migrate:{schema}"}
        )
        connection.commit()


def upgrade_blocking(owner_url: str, schema: str, script_location: Path) -> None:
    """As `upgrade`, for a program that has no loop."""
    asyncio.run(upgrade(owner_url, schema, script_location))


def grant(schema: str, *, application: str = "SELECT, INSERT, UPDATE, DELETE") -> list[str]:
    """Statements that let the two working roles use a schema's tables, those to come included."""
    return [
        f"GRANT USAGE ON SCHEMA {schema} TO {schema}_application, {schema}_system",
        f"GRANT {application} ON ALL TABLES IN SCHEMA {schema} TO {schema}_application",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {schema}_system",
        f"REVOKE ALL ON {schema}.alembic_version FROM {schema}_application, {schema}_system",
    ]


def row_level_security(schema: str, table: str, *, owner_column: str | None = None) -> list[str]:
    """Statements that force row-level security on a table.

    The application role sees rows of the transaction's organization; with `owner_column`, of these only the user's
    own, unless the role is ADMIN. Where nothing was set it sees nothing. The system role sees all rows.

    Args:
        schema: The schema.
        table: A table with the column `organization_id`.
        owner_column: The column that names the owner, if rows are a person's.
    """
    tenant = "organization_id = nullif(current_setting('aiagent.organization_id', true), '')::uuid"
    if owner_column is not None:
        tenant += (
            f" AND ({owner_column} = nullif(current_setting('aiagent.user_id', true), '')::uuid"
            " OR current_setting('aiagent.role', true) = 'ADMIN')"
        )
    return [
        f"ALTER TABLE {schema}.{table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {schema}.{table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_tenant ON {schema}.{table} TO {schema}_application"
        f" USING ({tenant}) WITH CHECK ({tenant})",
        f"CREATE POLICY {table}_system ON {schema}.{table} TO {schema}_system USING (true) WITH CHECK (true)",
    ]



