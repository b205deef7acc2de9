"""What each service is told: the environment variables of a local suite."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.ports import free_port
from deploy.local.state import Secrets

DRAIN_SECONDS = 10.0
"""How long calls may take to end when the suite is stopped."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a service.

    Attributes:
        listen: Where it serves; empty for one that serves no calls.
        role: What its command line says it is for.
    """

    service: str
    number: int
    listen: str
    metrics: str
    role: str = "serve"

    @property
    def name(self) -> str:
        """Its name in logs: `session-2`, `scheduler-worker-1`."""
        kind = self.service if self.role == "serve" else f"{self.service}-{self.role}"
        return f"{kind}-{self.number}"


@dataclass
class Plan:
    """Which replicas run where, and what they are told.

    Attributes:
        worker_count: Processes that only carry runs; without any, the scheduler's replicas carry them.
        replicas: Those that serve.
        workers: Those processes.
    """

    state: Path
    secrets: Secrets
    database_urls: dict[str, str]
    redis_url: str
    counts: dict[str, int]
    kafka_url: str = ""
    kafka_is_local: bool = False
    worker_count: int = 0
    replicas: list[Replica] = field(default_factory=list)
    workers: list[Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replicas = [
            Replica(service, number, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
            for service, count in self.counts.items()
            for number in range(1, count + 1)
        ]
        self.workers = [
            Replica("scheduler", number, "", f"127.0.0.1:{free_port()}", "worker")
            for number in range(1, self.worker_count + 1)
        ]

    def targets(self, service: str) -> list[str]:
        """Where the replicas of a service listen."""
        return [replica.listen for replica in self.replicas if replica.service == service]

    @property
    def metrics(self) -> list[str]:
        """Where the replicas tell their metrics."""
        return [replica.metrics for replica in self.replicas]

    def environment(self, replica: Replica) -> dict[str, str]:
        """The environment of one replica, beside what the person who started the suite has set."""
        service = replica.service
        variables = {
            "AIAGENT_STATE_DIR": str(self.state),
            "AIAGENT_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "AIAGENT_SERVICE_KEY": self.secrets.service_keys[service],
            "AIAGENT_SERVICE_TRUST": json.dumps(self.secrets.trust()),
            "AIAGENT_REDIS_URL": self.redis_url,
            "AIAGENT_BLOB_URL": (self.state / "blobs").as_uri(),
            "AIAGENT_WORKSPACE_ROOT": str(self.state / "workspaces"),
            "AIAGENT_KAFKA_URL": self.kafka_url,
            "AIAGENT_KAFKA_DECLARE_TOPICS": "true",
            "AIAGENT_KAFKA_LOCAL_BROKER": str(self.kafka_is_local).lower(),
            # One of its own for each process; whoever runs all in one process serves them once.
            "AIAGENT_METRICS_LISTEN": replica.metrics,
        }
        if replica.listen:
            variables[f"AIAGENT_{service.upper()}_LISTEN"] = replica.listen
        if service == "scheduler" and replica.role == "serve" and self.workers:
            # It would take nearly all: its own commits wake it first.
            variables["AIAGENT_SCHEDULER_WORKER_PLACES"] = "0"
        for other in self.counts:
            variables[f"AIAGENT_{other.upper()}_TARGETS"] = ",".join(self.targets(other))
        # Not the owner's: a service does not change its schema.
        for role, suffix in (("application", ""), ("system", "_SYSTEM")):
            url = self.database_urls.get(f"{service}_{role}")
            if url is not None:
                variables[f"AIAGENT_{service.upper()}{suffix}_DATABASE_URL"] = url
        if service == "auth":
            variables["AIAGENT_AUTH_ENCRYPTION_KEY"] = self.secrets.auth_encryption_key
        if service == "scheduler":
            variables["AIAGENT_SCHEDULER_ENCRYPTION_KEY"] = self.secrets.scheduler_encryption_key
        if service == "executor":
            variables["AIAGENT_EXECUTOR_ID"] = replica.name
        return variables
