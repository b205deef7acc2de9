"""Brings schema and topic up to date."""

from __future__ import annotations

from pathlib import Path

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
    url = settings.scheduler_owner_database_url
    if url is None:
        raise ValueError("AIAGENT_SCHEDULER_OWNER_DATABASE_URL is not set")
    # Not for services that serve: importing Alembic takes a tenth of their start.
    from services.kernel.db.migrations import upgrade

    line = f"schema {SCHEMA} is at {await upgrade(url.get_secret_value(), SCHEMA, _MIGRATIONS)}"
    broker = settings.broker()
    if broker is not None:
        from services.kernel.kafka.admin import declare

        created = await declare(broker, [TASK_RUNS])
        line += f"; topic {TASK_RUNS.name} " + ("was created" if created else "is there")
    return line
