"""The scheduler service's settings."""

from __future__ import annotations

from pydantic import Field, SecretStr

from services.kernel.kafka.settings import KafkaSettings


class SchedulerSettings(KafkaSettings):
    """Read from the environment (prefix `AIAGENT_`), then from `.env`."""

    scheduler_listen: str = "127.0.0.1:50054"
    scheduler_database_url: SecretStr
    scheduler_system_database_url: SecretStr
    scheduler_owner_database_url: SecretStr | None = None
    auth_targets: str = "127.0.0.1:50051"
    session_targets: str = "127.0.0.1:50052"
    scheduler_worker_places: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="How many runs of tasks this process carries at once; 0 for none, where workers do it.",
    )
    scheduler_max_runs_per_user: int = Field(
        default=0,
        ge=0,
        description="How many runs of one user go at once, whatever tasks they are of, in all workers; 0 for no limit.",
    )
    scheduler_run_retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="How many days a run is kept after its end; 0 for ever.",
    )
