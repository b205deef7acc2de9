"""The executor's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr

from services.kernel.settings import KernelSettings


class ExecutorSettings(KernelSettings):
    """Read from the environment (prefix `AIAGENT_`), then from `.env`."""

    executor_listen: str = "127.0.0.1:50053"
    session_targets: str = Field(
        default="127.0.0.1:50052",
        description="Replicas of the session service: addresses with commas between them, or one name.",
    )
    executor_id: str = Field(default="executor-1", description="The executor's name: stable over restarts.")
    executor_target: str = Field(
        default="", description="Where the session service finds this executor; empty: where it listens."
    )
    redis_url: SecretStr | None = Field(default=None, description="Where the executor says that it is there.")
    state_dir: Path = Path(".aiagent")
    workspace_root: Path = Path(".aiagent/workspaces")
    executor_max_live_clients: int = Field(default=8, ge=1, le=1000)
    executor_idle_seconds: float = Field(default=300.0, gt=0)
    isolation: Literal["auto", "bubblewrap", "process"] = "auto"
    sandbox_read_only_paths: str = Field(
        default="", description="Further paths that agents may read, separated by colons."
    )
    agent_max_processes: int = Field(
        default=4096,
        ge=0,
        description="Most processes and threads of one agent, 0 for no bound; not held where the executor is root.",
    )
    agent_memory_mib: int = Field(
        default=4096,
        ge=0,
        description="Most memory that the processes of one agent may hold together, in MiB; 0 for no bound.",
    )
    min_free_disk_mib: int = Field(
        default=1024,
        ge=0,
        description="What has to stay free where workspaces are, in MiB: below it an agent that goes on writing is"
        " ended; 0 for no bound.",
    )
    anthropic_base_url: str = "https://api.anthropic.com"
    anthropic_api_key: SecretStr = Field(
        default=SecretStr(""), validation_alias=AliasChoices("ANTHROPIC_API_KEY", "anthropic_api_key")
    )
    decision_hold_seconds: float = Field(
        default=86_400.0,
        gt=0,
        description="A tool call's hook waits at most so long; the driver parks the turn long before.",
    )
