"""The processes of one agent: found, bounded in memory, and ended together."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from claude_agent_sdk import ClaudeSDKClient

from services.executor.gateways import memory, processes
from services.executor.gateways.isolation import Isolation

_log = structlog.get_logger(__name__)
KILL_SECONDS = 0.3


class AgentProcess:
    """The process that a client has started, with all that it has started."""

    def __init__(self, client: ClaudeSDKClient, token: str, isolation: Isolation, memory_bytes: int) -> None:
        """Takes an agent whose client is not connected yet.

        Args:
            client: Starts the process.
            token: The agent's token: every process of it carries that in its environment.
            isolation: How it is started.
            memory_bytes: Most that its processes may hold together; 0 for no bound.
        """
        self._client = client
        self._token = token
        self._isolation = isolation
        self._memory_bytes = memory_bytes
        self.overrun = ""
        """Why it was killed for its memory, for a person; empty when it was not."""

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

    async def end(self) -> None:
        """Kills all of it, and returns when it runs no more."""
        if not await processes.end(await asyncio.to_thread(self.found), KILL_SECONDS):
            _log.warning("agent was killed and is still there")

    async def end_rest(self, first: Any) -> None:
        """Kills what a disconnected client has left, of which `first` was the first process."""
        if first is not None and first.returncode is None:
            processes.kill(processes.tree(first.pid))
        processes.kill(await asyncio.to_thread(self._strays))

    async def until_too_large(self) -> None:
        """Waits until the agent holds more memory than it may, and says so in `overrun`."""
        held = await memory.until_over(self._memory_bytes, lambda: list(set(self.found())))
        self.overrun = (
            f"the agent's processes held {held >> 20} MiB of memory, more than the {self._memory_bytes >> 20} MiB"
            " that an agent may; they were ended"
        )
        _log.warning("agent is killed for its memory", held_bytes=held, limit_bytes=self._memory_bytes)
