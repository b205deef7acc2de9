"""The processes of one agent: found, bounded in memory and on disk, and ended together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from claude_agent_sdk import ClaudeSDKClient

from services.executor.gateways import disk, memory, processes
from services.executor.gateways.isolation import Isolation

_log = structlog.get_logger(__name__)
KILL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Bounds:
    """What agents may take of the machine.

    Attributes:
        memory_bytes: Most that the processes of one may hold together; 0 for no bound.
        free_bytes: What has to stay free where they write; 0 for no bound.
    """

    memory_bytes: int = 0
    free_bytes: int = 0


class AgentProcess:
    """The process that a client has started, with all that it has started."""

    def __init__(
        self, client: ClaudeSDKClient, token: str, isolation: Isolation, bounds: Bounds, workspace: Path
    ) -> None:
        """Takes an agent whose client is not connected yet.

        Args:
            client: Starts the process.
            token: The agent's token: every process of it carries that in its environment.
            isolation: How it is started.
            bounds: What it may take.
            workspace: Where it writes.
        """
        self._client = client
        self._token = token
        self._isolation = isolation
        self._bounds = bounds
        self._workspace = workspace
        self.overrun: tuple[str, str] | None = None
        """The reason, and the words for it, that it was killed for what it took; None when it was not."""

    def first(self) -> Any:
        """The process that the SDK has started; it forgets it when it disconnects. None when there is none."""
        return getattr(getattr(self._client, "_transport", None), "_process", None)

    def found(self) -> list[int]:
        """Every process of the agent."""
        first = self.first()
        pids = processes.tree(first.pid) if first is not None and first.returncode is None else []
        return pids + self._strays()

    def _strays(self) -> list[int]:
        """Those that are nobody's children; a PID namespace leaves none."""
        if self._isolation.ends_with_its_first_process:
            return []
        return processes.carrying(self._token)

    def _all(self) -> list[int]:
        first = self.first()
        pids = processes.frozen_tree(first.pid) if first is not None and first.returncode is None else []
        return pids + self._strays()

    async def end(self) -> None:
        """Kills all of it, and returns when it runs no more."""
        if not await processes.end(await asyncio.to_thread(self._all), KILL_SECONDS):
            _log.warning("agent was killed and is still there")

    async def end_rest(self, first: Any) -> None:
        """Kills what a disconnected client has left, of which `first` was the first process."""
        if first is not None and first.returncode is None:
            processes.kill(processes.frozen_tree(first.pid))
        processes.kill(await asyncio.to_thread(self._strays))

    async def until_too_large(self) -> None:
        """Waits until the agent takes more than it may, and says so in `overrun`."""
        looks = [asyncio.create_task(look) for look in (self._memory(), self._disk())]
        try:
            done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
            self.overrun = next(iter(done)).result()
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        _log.warning("agent is killed for what it takes", reason=self.overrun[0], message=self.overrun[1])

    async def _memory(self) -> tuple[str, str]:
        held = await memory.until_over(self._bounds.memory_bytes, lambda: list(set(self.found())))
        return "AGENT_MEMORY", (
            f"the agent's processes held {held >> 20} MiB of memory, more than the {self._bounds.memory_bytes >> 20}"
            " MiB that an agent may; they were ended"
        )

    async def _disk(self) -> tuple[str, str]:
        least = self._bounds.free_bytes
        left = await disk.until_filling(least, self._workspace, lambda: list(set(self.found())))
        return "AGENT_DISK", (
            f"the agent went on writing where {left >> 20} MiB were free, less than the {least >> 20} MiB that have to"
            " stay; its processes were ended"
        )
