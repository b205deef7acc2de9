"""The schema that migrations build: as declared, with tenants apart; and who may look across them."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import services.session
from deploy.local.postgres import Postgres
from services.kernel.db import Database
from services.kernel.db.migrations import upgrade
from services.session.store import leases, queue, transcripts
from services.session.store.system_queries import DriverQueries
from services.session.store.tables import metadata

pytestmark = pytest.mark.integration
MIGRATIONS = Path(services.session.__path__[0], "migrations")
OWNERS = {
    "sessions": "user_id",
    "turns": "user_id",
    "permission_requests": "user_id",
    "idempotency_keys": "caller_id",
}
"""The tables in which users see their own rows, and admins all of the organization."""


def is_set(column: str, setting: str) -> str:
    """A condition on a column, as PostgreSQL prints it."""
    value = f"(NULLIF(current_setting('aiagent.{setting}'::text, true), ''::text))::uuid"
    return f'({column} = ( SELECT {value} AS "nullif"))'


def of_owner(column: str) -> str:
    """That a row is the user's, or the user an admin."""
    role = "(( SELECT current_setting('aiagent.role'::text, true) AS current_setting) = 'admin'::text)"
    return f"({is_set(column, 'user_id')} OR {role})"


OF_TENANT = is_set("organization_id", "organization_id")


def functions(of: type | ModuleType) -> set[str]:
    """The public functions that a class or a module defines itself."""
    home = of.__module__ if isinstance(of, type) else of.__name__
    found = inspect.getmembers(of, lambda member: inspect.isfunction(member) and member.__module__ == home)
    return {name for name, _ in found if not name.startswith("_")}


def test_the_queries_across_tenants() -> None:
    # Whoever adds one thinks about what it reaches: row-level security does not stand behind it.
    assert functions(DriverQueries) == {
        "abandoned",
        "acquire",
        "executor_targets",
        "fenced",
        "heads",
        "purge",
        "purge_facts",
        "purge_request_ids",
        "release",
        "release_if_idle",
        "renew",
        "with_commands",
        "work",
    }
    assert functions(leases) == {"acquire", "release", "renew"}
    assert functions(queue.QueueQueries) == {"ahead"}
    assert functions(transcripts.TranscriptQueries) == {"append", "page", "position"}


async def test_migrations_build_what_is_declared(session_database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"include_schemas": True, "compare_type": True, "compare_server_default": True}
        options["include_name"] = lambda name, kind, _: kind != "schema" or name == "session"
        options["version_table_schema"] = "session"
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    of_schema = "connamespace = 'session'::regnamespace"
    async with session_database.system() as connection:
        assert await connection.run_sync(differences) == []
        checks = set(
            (
                await connection.execute(
                    sa.text(f"SELECT conname FROM pg_constraint WHERE contype = 'c' AND {of_schema}")
                )
            ).scalars()
        )
    assert checks == {
        constraint.name
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }


async def test_every_table_forces_row_level_security(session_database: Database) -> None:
    async with session_database.system() as connection:
        rows = (
            await connection.execute(
                sa.text(
                    "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class"
                    " WHERE relkind = 'r' AND relnamespace = 'session'::regnamespace"
                )
            )
        ).all()
    assert {row.relname for row in rows if not row.forced} == {"alembic_version"}
    assert len(rows) == len(metadata.tables) + 1


async def test_the_application_sees_and_writes_rows_of_its_tenant_only(session_database: Database) -> None:
    query = (
        "SELECT tablename, qual, coalesce(with_check, qual) AS with_check FROM pg_policies"
        " WHERE schemaname = 'session' AND roles && '{session_application,public}'"
    )
    async with session_database.system() as connection:
        rows = (await connection.execute(sa.text(query))).all()
    # One for each table: of several, any one is enough.
    names = sorted(row.tablename for row in rows)
    assert names == sorted(table.name for table in metadata.tables.values())
    for row in rows:
        owner = OWNERS.get(row.tablename)
        assert row.qual == (f"({OF_TENANT} AND {of_owner(owner)})" if owner else OF_TENANT), row.tablename
        assert row.with_check == row.qual, row.tablename


async def test_the_log_is_written_once(session_database: Database) -> None:
    query = sa.text("SELECT has_table_privilege('session_application', 'session.events', :privilege)")
    async with session_database.system() as connection:
        allowed = {
            privilege
            for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
            if (await connection.execute(query, {"privilege": privilege})).scalar_one()
        }
    assert allowed == {"SELECT", "INSERT"}


async def test_request_ids_of_before_are_given_their_sessions(postgres: Postgres) -> None:
    name = f"test_{uuid4().hex[:12]}"
    await postgres.provision(name)
    owner = postgres.url("session_owner", name)
    assert await upgrade(owner, "session", MIGRATIONS, revision="0002") == "0002"
    organization, person, session, turn, gone = (uuid4() for _ in range(5))
    connection = await asyncpg.connect(postgres.url("session_system", name))
    try:
        await connection.execute(
            "INSERT INTO session.sessions (id, organization_id, user_id, name, mode, state, sdk_options, labels,"
            " permission_timeout, turn_timeout) VALUES ($1, $2, $3, '', 'INTERACTIVE', 'CREATED', '{}', '{}', '1 h',"
            " '1 h')",
            session,
            organization,
            person,
        )
        await connection.execute(
            "INSERT INTO session.turns (id, session_id, organization_id, user_id, number, state, message_id,"
            " first_sequence, last_sequence) VALUES ($1, $2, $3, $4, 1, 'QUEUED', $1, 1, 2)",
            turn,
            session,
            organization,
            person,
        )
        soon = datetime.now(UTC) + timedelta(hours=1)
        for method, made, expire_time in (
            ("CreateSession", session, None),
            ("SendMessage", turn, None),
            ("InterruptTurn", turn, soon),
            ("CreateSession", gone, None),
            ("SendMessage", gone, None),
        ):
            await connection.execute(
                "INSERT INTO session.idempotency_keys (organization_id, caller_id, method, request_id, request_hash,"
                " response, expire_time) VALUES ($1, $2, $3, $4, '', $5, $6)",
                organization,
                person,
                method,
                str(made),
                made.bytes,
                expire_time,
            )
        await upgrade(owner, "session", MIGRATIONS)
        rows = await connection.fetch("SELECT method, session_id FROM session.idempotency_keys")
        found: dict[str, UUID | None] = {row["method"]: row["session_id"] for row in rows}
        assert (len(rows), found) == (
            3,
            {"CreateSession": session, "SendMessage": session, "InterruptTurn": None},
        )
        await connection.execute("DELETE FROM session.sessions")
        left = await connection.fetch("SELECT method FROM session.idempotency_keys")
        assert [row["method"] for row in left] == ["InterruptTurn"]
    finally:
        await connection.close()
