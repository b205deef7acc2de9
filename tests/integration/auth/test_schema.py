"""The schema that migrations build: as declared, with tenants apart, and nothing for the application role to steal."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from aiagent.auth.v1 import auth_service_pb2 as pb
from services.auth.store.system_queries import SystemQueries
from services.auth.store.tables import metadata
from services.auth.usecases.housekeeping import purge
from services.auth.usecases.ports import SystemTransaction
from services.kernel.db import Database
from services.kernel.testing import FakeClock, a_caller
from tests.integration.auth.harness import Auth, Databases, a_registration, running_auth

pytestmark = pytest.mark.integration


@pytest.fixture
async def database(auth: Auth, auth_databases: Databases) -> AsyncIterator[Database]:
    opened = Database(
        auth_databases.url("auth_application", auth.database),
        auth_databases.url("auth_system", auth.database),
    )
    yield opened
    await opened.close()


def test_the_queries_without_a_caller() -> None:
    # Whoever adds one thinks about what it lets an unknown caller reach.
    named = {name for name, _ in inspect.getmembers(SystemQueries, inspect.iscoroutinefunction)}
    assert {name for name in named if not name.startswith("_")} == {
        "once",
        "create_account",
        "credentials_of",
        "user_by_id",
        "replace_password_hash",
        "lock_first_start",
        "has_administrator",
        "lock_buckets",
        "save_buckets",
        "create_refresh_family",
        "add_refresh_token",
        "lock_refresh_token",
        "mark_refresh_token_used",
        "revoke_refresh_family",
        "signing_keys",
        "add_signing_key",
        "purge",
    }
    assert all(hasattr(SystemTransaction, name) for name in named if not name.startswith("_"))


async def test_migrations_build_what_is_declared(auth: Auth, database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"include_schemas": True, "compare_type": True, "compare_server_default": True}
        options["include_name"] = lambda name, kind, _: kind != "schema" or name == "auth"
        options["version_table_schema"] = "auth"
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    async with database.system() as connection:
        assert await connection.run_sync(differences) == []
    checks = await auth.sql(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'auth'::regnamespace"
    )
    declared = {
        constraint.name
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert {row["conname"] for row in checks} == declared


async def test_every_table_forces_row_level_security(auth: Auth) -> None:
    rows = await auth.sql(
        "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'auth'::regnamespace"
    )
    assert {row["relname"] for row in rows if not row["forced"]} == {"alembic_version"}
    assert len(rows) == len(metadata.tables) + 1


async def test_a_tenant_sees_its_own_account_only(auth: Auth, database: Database) -> None:
    mine = await auth.stub.Register(a_registration())
    await auth.stub.Register(a_registration())
    caller = a_caller(user_id=mine.id, organization_id=mine.organization_id)
    for statement, count in (
        ("SELECT id, email FROM auth.users", 1),
        ("SELECT id FROM auth.organizations", 1),
        ("SELECT user_id FROM auth.memberships", 1),
    ):
        async with database.tenant(caller) as connection:
            assert len((await connection.execute(sa.text(statement))).all()) == count, statement
        async with database.tenant(a_caller()) as connection:
            assert (await connection.execute(sa.text(statement))).all() == [], statement


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT password_hash FROM auth.users",
        "UPDATE auth.users SET role = 'admin'",
        "SELECT 1 FROM auth.refresh_tokens",
        "SELECT 1 FROM auth.refresh_families",
        "SELECT 1 FROM auth.signing_keys",
        "SELECT 1 FROM auth.login_failures",
        "SELECT 1 FROM auth.outbox",
        "DELETE FROM auth.memberships",
    ],
)
async def test_what_the_application_role_may_not(
    auth: Auth, auth_databases: Databases, statement: str
) -> None:
    connection = await asyncpg.connect(auth_databases.url("auth_application", auth.database))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [("email", "UPPER@example.org"), ("username", "a b"), ("role", "root"), ("password_hash", "plain")],
)
async def test_the_tables_refuse_what_the_contract_would(auth: Auth, column: str, value: str) -> None:
    user = await auth.stub.Register(a_registration())
    with pytest.raises(asyncpg.CheckViolationError):
        await auth.sql(f"UPDATE auth.users SET {column} = $1 WHERE id = $2::uuid", value, user.id)


async def test_what_has_no_more_meaning_is_purged(auth_databases: Databases, tmp_path: Path) -> None:
    clock = FakeClock()
    async with running_auth(auth_databases, tmp_path, clock=clock) as auth:
        request = await auth.register(request_id="a")
        await auth.login(request)
        tokens = await auth.login(request)
        await auth.stub.RefreshToken(pb.RefreshTokenRequest(refresh_token=tokens.refresh_token))

        async def count(table: str) -> int:
            return int((await auth.sql(f"SELECT count(*) AS n FROM auth.{table}"))[0]["n"])

        async def counts() -> list[int]:
            while await purge(auth.service._transactions, clock):
                pass
            tables = ("refresh_tokens", "refresh_families", "login_failures", "idempotency_keys", "users")
            return [await count(table) for table in tables]

        # Buckets without a success are full again, and go; the account's place is remembered.
        assert await counts() == [3, 2, 1, 1, 2]
        await auth.sql("UPDATE auth.idempotency_keys SET expire_time = now() - interval '1 s'")
        await clock.advance(7 * 86400 + 1)
        assert await counts() == [0, 0, 1, 0, 2]
        await clock.advance(24 * 86400)
        assert await counts() == [0, 0, 0, 0, 2]
        await auth.login(request)
