"""The model gateway with the offline model, and agents that find it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.executor.gateways import isolation, offline_model
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from tests.unit.executor.memory_transcripts import MemoryTranscripts


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory of our own with a state directory and workspaces in it."""
    path = Path(tempfile.mkdtemp(prefix="aiagent-executor-"))
    (path / "state" / "run").mkdir(parents=True, mode=0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
async def gateway(directory: Path) -> AsyncIterator[ModelGateway]:
    """The gateway, played by the offline model."""
    made = ModelGateway(
        directory / "state" / "run" / "gateway.sock", base_url="", api_key="", offline=offline_model.answer
    )
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
def strongest(directory: Path) -> Isolation:
    """The strongest isolation of this machine."""
    return isolation.choose("auto", directory / "state")


@pytest.fixture
def transcripts() -> MemoryTranscripts:
    """Where real agents keep their conversations."""
    return MemoryTranscripts()


@pytest.fixture
def claude_agents(
    directory: Path, gateway: ModelGateway, strongest: Isolation, transcripts: MemoryTranscripts
) -> ClaudeAgents:
    """Real agents."""
    return ClaudeAgents(
        directory / "state",
        directory / "workspaces",
        strongest,
        gateway,
        transcripts,
        offline_model=True,
        hook_timeout_seconds=60.0,
    )
