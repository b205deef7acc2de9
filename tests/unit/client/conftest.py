"""A scripted server, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from aiagent_client import Client
from tests.unit.client.scripted_server import PASSWORD, ScriptedServer
from tests.unit.client.terminal import CommandLine


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server of this test alone."""
    made = ScriptedServer()
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def client(server: ScriptedServer) -> AsyncIterator[Client]:
    """A client that logs in by itself."""
    async with Client(server.url, email="ada@example.org", password=PASSWORD, timeout=10) as made:
        yield made


@pytest_asyncio.fixture
async def command(server: ScriptedServer, tmp_path: Path) -> CommandLine:
    """The command line, logged in."""
    made = CommandLine(server.url, tmp_path / "config")
    done = await made.run("auth", "login", "ada", "--password-stdin", stdin=PASSWORD + "\n")
    assert done.code == 0, done.err
    return made
