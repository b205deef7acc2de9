"""Brings schema and topic up to date."""

from __future__ import annotations

from pathlib import Path

from services.kernel.migrating import bring_up_to_date
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.facts import TASK_RUNS
from services.scheduler.store.tables import SCHEMA

_MIGRATIONS = Path(__file__).parents[1] / "migrations"


async def migrate(settings: SchedulerSettings) -> str:
    """Brings the schema up to date, and creates the topic where a broker is set; returns a line that says so.

    Raises:
        ValueError: the owner's database URL is not set.
        PublishError: the broker does not do it.
    """
    return await bring_up_to_date(
        SCHEMA,
        settings.scheduler_owner_database_url,
        _MIGRATIONS,
        broker=settings.broker(),
        topics=[TASK_RUNS],
    )
