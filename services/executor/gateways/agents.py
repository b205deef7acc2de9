"""Makes agents, and removes what they leave."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from uuid import UUID

from services.executor.gateways.agent import ClaudeAgent
from services.executor.gateways.agent_process import Bounds
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.usecases.ports import TranscriptPort


class ClaudeAgents:
    """Makes agents, and knows where they keep their files."""

    def __init__(
        self,
        state_dir: Path,
        workspace_root: Path,
        isolation: Isolation,
        gateway: ModelGateway,
        transcripts: TranscriptPort,
        *,
        offline_model: bool,
        hook_timeout_seconds: float,
        bounds: Bounds = Bounds(),  # noqa: B008  # nothing can change it
    ) -> None:
        """Composes it.

        Args:
            state_dir: Private files of agents go below `agents/` in it.
            workspace_root: Where the workspaces are.
            isolation: How agents are started.
            gateway: Where they find the model.
            transcripts: Where their conversations are kept.
            offline_model: Whether the scripted model answers.
            hook_timeout_seconds: Longer than any decision on a tool call may take.
            bounds: What each of them may take of the machine.
        """
        self._agents = state_dir.resolve() / "agents"
        self._workspaces = workspace_root.resolve()
        self._isolation = isolation
        self._gateway = gateway
        self._transcripts = transcripts
        self._offline = offline_model
        self._hook_timeout = hook_timeout_seconds
        self._bounds = bounds

    @property
    def offline_model(self) -> bool:
        """Whether the scripted offline model answers."""
        return self._offline

    @property
    def isolation(self) -> str:
        """BUBBLEWRAP or PROCESS."""
        return self._isolation.kind

    def make(self, session_id: UUID) -> ClaudeAgent:
        """Returns an agent that is not started."""
        return ClaudeAgent(
            self._agents / str(session_id),
            self._workspaces,
            self._isolation,
            self._gateway,
            self._transcripts,
            offline_model=self._offline,
            hook_timeout_seconds=self._hook_timeout,
            bounds=self._bounds,
        )

    async def forget(self, session_id: UUID) -> None:
        """Removes a session's private files."""
        await asyncio.to_thread(shutil.rmtree, self._agents / str(session_id), True)

    def sweep(self) -> int:
        """Kills agents that a killed predecessor may have left, and returns how many it found."""
        mark = os.fsencode(self._agents) + b"/"
        found = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in command and (b"bwrap" in command or b"unshare" in command or b"claude" in command):
                found += 1
                try:
                    os.kill(int(entry.name), signal.SIGKILL)
                except ProcessLookupError:
                    continue
        return found
