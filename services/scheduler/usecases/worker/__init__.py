"""The worker: takes runs, carries each through a session, and records what came of it."""

from services.scheduler.usecases.worker.pool import RunWorker

__all__ = ["RunWorker"]
