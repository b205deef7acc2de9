"""Envoy before a stand-in for the services."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.state import StateDirectory

from .edge import Edge


async def answered(
    client: httpx.AsyncClient,
    path: str = "/health",
    *,
    method: str = "GET",
    status: int = 200,
    **options: Any,
) -> httpx.Response:
    """Waits for a status; Envoy tells nobody when it has noticed that a service comes or goes."""
    async with asyncio.timeout(5):
        while True:
            answer = await client.request(method, path, **options)
            if answer.status_code == status:
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
        await answered(client)
        running_edge.services.received.clear()
        yield running_edge
        running_edge.services.failure = None
        await running_edge.restore()
        await answered(client)


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=20) as opened:
        yield opened
