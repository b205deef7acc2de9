"""Composes the scheduler service: what serves, and what only carries runs."""

from services.scheduler.bootstrap.carrying import WorkerService, build_worker
from services.scheduler.bootstrap.migrating import migrate
from services.scheduler.bootstrap.serving import POLICIES, SchedulerService, build

__all__ = [
    "POLICIES",
    "SchedulerService",
    "WorkerService",
    "build",
    "build_worker",
    "migrate",
]
