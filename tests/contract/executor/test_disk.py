"""Where little room is left on the disk, an agent that goes on writing is ended; with the real CLI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.executor.domain.items import AttemptEnded, Outcome
from services.executor.gateways import disk
from services.executor.gateways.agent_process import Bounds
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from tests.contract.executor.test_ends import Desk, shell
from tests.unit.executor.memory_transcripts import MemoryTranscripts

pytestmark = pytest.mark.contract


@pytest.fixture(params=["strongest", "PROCESS"])
async def desk(
    request: pytest.FixtureRequest, directory: Path, strongest: Isolation, gateway: ModelGateway
) -> AsyncIterator[Desk]:
    """Agents on a disk that is too full."""
    isolation = strongest if request.param == "strongest" else Isolation("PROCESS", directory / "state")
    made = Desk(
        ClaudeAgents(
            directory / "state",
            directory / "workspaces",
            isolation,
            gateway,
            MemoryTranscripts(),
            offline_model=True,
            hook_timeout_seconds=60.0,
            bounds=Bounds(free_bytes=1 << 60),
        )
    )
    yield made
    made.watch.cancel()
    await made.turns.stop()


async def test_who_goes_on_writing_is_ended_and_nobody_else(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.2)
    small = "head -c 1M /dev/zero > small; sleep 0.5; echo done"
    fence, attempt = desk.begin(shell(small), {"text": "x"})
    ended = await desk.follow(fence, attempt, until=AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert ended.outcome is Outcome.SUCCEEDED
    # Each process ends before the next one begins: what they have written is not lost with them.
    large = "while sleep 0.1; do head -c 4M /dev/zero > large-$RANDOM; done"
    fence, attempt = desk.begin(shell(large), {"text": "x"})
    async with asyncio.timeout(30):
        ended = await desk.follow(fence, attempt, until=AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "AGENT_DISK")
    assert "have to stay" in ended.message


async def test_where_there_is_room_nobody_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.01)
    looked: list[Path] = []
    monkeypatch.setattr(disk, "free", lambda place: looked.append(place) or 100)

    def pids() -> list[int]:
        raise AssertionError("there is room")

    watching = asyncio.create_task(disk.until_filling(100, tmp_path, pids))
    async with asyncio.timeout(5):
        while len(looked) < 3:
            await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
