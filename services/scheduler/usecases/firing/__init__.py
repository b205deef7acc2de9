"""Makes the fires of schedules, of all tenants."""

from services.scheduler.usecases.firing.backfiller import Backfiller
from services.scheduler.usecases.firing.prompts import SchedulePrompts
from services.scheduler.usecases.firing.ticker import Ticker

__all__ = ["Backfiller", "SchedulePrompts", "Ticker"]
