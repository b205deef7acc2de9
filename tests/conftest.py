"""Real servers for tests: PostgreSQL and Valkey started once, a database for each module, the whole suite."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.local.postgres import Postgres
from deploy.local.servers import Valkey
from deploy.local.state import SCHEMAS, StateDirectory
from services.kernel.db import Database
from services.kernel.db.migrations import upgrade
from tests.databases import Copy, copy_database, drop_database
from tests.running_suite import RunningSuite

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def state_directory() -> Iterator[StateDirectory]:
    """A state directory for single servers."""
    # Not pytest's own: names of Unix sockets are short, and pytest keeps the last three runs.
    path = Path(tempfile.mkdtemp(prefix="aiagent-tests-"))
    state = StateDirectory(path)
    state.open()
    yield state
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(state_directory: StateDirectory) -> AsyncIterator[Postgres]:
    """PostgreSQL with all roles and schemas, migrated."""
    server = Postgres(state_directory, state_directory.secrets(), durable=False)
    await server.start()
    try:
        await server.provision()
        for schema in SCHEMAS:
            migrations = ROOT / "services" / schema / "migrations"
            await upgrade(server.url(f"{schema}_owner"), schema, migrations)
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="session")
async def valkey(state_directory: StateDirectory) -> AsyncIterator[Valkey]:
    """Valkey; `valkey.url` has its password."""
    server = Valkey(state_directory, state_directory.secrets())
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="module")
async def databases(postgres: Postgres) -> AsyncIterator[Copy]:
    """A migrated database of this module alone."""
    copy = await copy_database(postgres, f"test_{uuid4().hex[:12]}")
    yield copy
    await drop_database(copy)


@pytest.fixture(scope="module")
async def auth_database(databases: Copy) -> AsyncIterator[Database]:
    """The auth service's view of the module's database."""
    database = databases.open("auth")
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def session_database(databases: Copy) -> AsyncIterator[Database]:
    """The session service's view of the module's database."""
    database = databases.open("session")
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def scheduler_database(databases: Copy) -> AsyncIterator[Database]:
    """The scheduler service's view of the module's database."""
    database = databases.open("scheduler")
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def suite() -> AsyncIterator[RunningSuite]:
    """The whole suite with the offline model, as `make run` starts it."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-suite-"))
    running = RunningSuite(directory / "state")
    try:
        await running.start()
        yield running
    finally:
        await running.stop()
        shutil.rmtree(directory, ignore_errors=True)
