"""The session service's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from services.kernel.kafka.settings import KafkaSettings


class SessionSettings(KafkaSettings):
    """Read from the environment (prefix `AIAGENT_`), then from `.env`."""

    session_listen: str = "127.0.0.1:50052"
    session_database_url: SecretStr
    session_system_database_url: SecretStr
    session_owner_database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    auth_targets: str = "127.0.0.1:50051"
    executor_targets: str = "127.0.0.1:50053"
    blob_url: str = "file://.aiagent/blobs"
    workspace_root: Path = Path(".aiagent/workspaces")
    workspace_limit_bytes: int = Field(default=1024**3, gt=0)
    session_permission_hold_seconds: float = Field(
        default=600.0, gt=0, description="How long a process is held while a person is asked."
    )
    session_max_watches_per_user: int = Field(
        default=200,
        gt=0,
        description="How many streams and waiting calls a user may have open on one replica.",
    )
    session_watch_unread_seconds: float = Field(
        default=120.0, gt=0, description="How long a response of a stream may wait for its reader."
    )
