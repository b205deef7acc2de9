"""An agent's memory: bounded, counted once, and the kernel's first choice; with the real CLI."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from services.executor.domain.items import AttemptEnded, Outcome, ToolResult
from services.executor.gateways import memory, processes
from services.executor.gateways.agent_process import Bounds
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from tests.contract.executor.test_ends import Desk, shell, sleeping
from tests.unit.executor.memory_transcripts import MemoryTranscripts

pytestmark = pytest.mark.contract

MIB = 1024 * 1024
LIMIT = 1200 * MIB
"""Above what the CLI alone holds, below what the tool takes."""


@pytest.fixture(params=["strongest", "PROCESS"])
async def desk(
    request: pytest.FixtureRequest, directory: Path, strongest: Isolation, gateway: ModelGateway
) -> AsyncIterator[Desk]:
    """Agents with a bound on their memory."""
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
            bounds=Bounds(memory_bytes=LIMIT),
        )
    )
    yield made
    made.watch.cancel()
    await made.turns.stop()


async def test_a_tool_that_takes_too_much_ends_the_turn_and_all_that_runs(desk: Desk):
    number = 600_000 + os.getpid() % 100_000
    # tail keeps a line that does not end, in memory.
    fence, attempt = desk.begin(
        shell(f"sleep {number} & head -c 3G /dev/zero | tail -n 1 | sleep {number}"), {"text": "x"}
    )
    async with asyncio.timeout(60):
        ended = await desk.follow(fence, attempt, until=AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "AGENT_MEMORY")
    assert f"more than the {LIMIT // MIB} MiB" in ended.message
    assert not sleeping(number), "the end is told when nothing runs any more"


async def test_an_ordinary_turn_is_left_alone_and_the_kernel_would_take_it_first(desk: Desk):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    fence, attempt = desk.begin(shell("cat /proc/self/oom_score_adj"), {"text": "x"})
    result = await desk.follow(fence, attempt, until=ToolResult)
    assert isinstance(result, ToolResult)
    assert result.text.strip() == "500"
    agents = [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert 0 < memory.held(agents) < LIMIT
    ended = await desk.follow(fence, attempt, until=AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert ended.outcome is Outcome.SUCCEEDED


async def test_pages_that_a_fork_shares_are_counted_once():
    script = "import os, time; held = b'x' * (64 << 20); os.fork(); print('up', flush=True); time.sleep(600)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        for _ in range(2):
            await process.stdout.readline()
        tree = processes.tree(process.pid)
        assert len(tree) == 2
        assert memory.held(tree) > 120 * MIB
        assert 60 * MIB < memory.held_exactly(tree) < 100 * MIB
    finally:
        processes.kill(processes.tree(process.pid))
        await process.wait()


async def test_without_a_bound_nobody_looks():
    looked = False

    def look() -> list[int]:
        nonlocal looked
        looked = True
        return []

    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await memory.until_over(0, look)
    assert not looked
