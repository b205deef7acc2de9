"""Envoy before a stand-in for the services."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deploy.local.state import StateDirectory

from .edge import Edge


async def healthy(client: httpx.AsyncClient, *, expected: int = 200) -> httpx.Response:
    """Waits for a status of /health."""
    async with asyncio.timeout(15):
        while True:
            answer = await client.get("/health")
            if answer.status_code == expected:
                return answer
            await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
async def running_edge() -> AsyncIterator[Edge]:
    with tempfile.TemporaryDirectory(prefix="aiagent-edge-") as folder:
        state = StateDirectory(Path(folder))
        state.open()
        edge = Edge(state)
        await edge.serve()
        await edge.envoy.start()
        yield edge
        await edge.envoy.stop()
        await edge.vanish()


@pytest.fixture
async def edge(running_edge: Edge) -> AsyncIterator[Edge]:
    """The edge with its services up, which a test may take away."""
    async with httpx.AsyncClient(base_url=running_edge.url, trust_env=False) as client:
        await healthy(client)
        running_edge.services.received.clear()
        yield running_edge
        running_edge.services.failure = None
        await running_edge.vanish()
        await running_edge.serve()


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=20) as opened:
        yield opened
