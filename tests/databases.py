"""Databases of a test module: copies of one that was migrated once."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.local.postgres import DATABASE, Postgres
from services.kernel.db import Database


@dataclass(frozen=True)
class Copy:
    """A database with all schemas, of one test module alone.

    Attributes:
        server: the server that holds it.
        name: its name there.
    """

    server: Postgres
    name: str

    def url(self, role: str) -> str:
        """The URL of a role: `session_application`."""
        return self.server.url(role, self.name)

    def open(self, schema: str, **options: object) -> Database:
        """Connects as a service does; whoever opens it closes it."""
        return Database(self.url(f"{schema}_application"), self.url(f"{schema}_system"), **options)  # type: ignore[arg-type]


async def copy_database(server: Postgres, name: str) -> Copy:
    """Copies the migrated database, whose connections must all be closed."""
    connection = await server.connect("postgres")
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE} STRATEGY file_copy")
        await server.open(connection, name)
    finally:
        await connection.close()
    return Copy(server, name)


async def drop_database(copy: Copy) -> None:
    """Drops a copy, whoever is still connected."""
    connection = await copy.server.connect("postgres")
    try:
        await connection.execute(f"DROP DATABASE {copy.name} WITH (FORCE)")
    finally:
        await connection.close()
