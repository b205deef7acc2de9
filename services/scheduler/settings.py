"""The scheduler service's settings."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from services.kernel.kafka.settings import KafkaSettings
from services.kernel.settings import targets


class SchedulerSettings(KafkaSettings):
    """Read from the environment (prefix `AIAGENT_`), then from `.env`."""

    scheduler_listen: str = "127.0.0.1:50054"
    scheduler_database_url: SecretStr
    scheduler_system_database_url: SecretStr
    scheduler_owner_database_url: SecretStr | None = None
    scheduler_encryption_key: SecretStr = Field(
        description="32 random bytes in base64url. Seals the secrets of webhooks: without it they must be rotated."
    )
    scheduler_webhook_places: int = Field(
        default=16,
        ge=0,
        le=1000,
        description="How many messages of webhooks this process sends at once; 0 for none.",
    )
    scheduler_webhook_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="Networks that webhooks may reach although the public internet does not know them, as a comma"
        " list: 10.1.0.0/16,fd00::/8.",
    )
    auth_targets: str = "127.0.0.1:50051"
    session_targets: str = "127.0.0.1:50052"
    scheduler_worker_places: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="How many runs of tasks this process carries at once; 0 for none, where workers do it.",
    )
    scheduler_max_runs_per_user: int = Field(
        default=5,
        ge=0,
        description="How many runs of one user go at once, whatever tasks they are of, in all workers; 0 for no limit.",
    )
    scheduler_max_schedules_per_user: int = Field(
        default=1000, ge=0, description="How many schedules a user may have; 0 for no limit."
    )
    scheduler_run_retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="How many days a run is kept after its end; 0 for ever.",
    )

    @field_validator("scheduler_webhook_allowed_networks", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        return targets(value) if isinstance(value, str) else value
