"""`SchedulerService`: its methods, a module for each of its resources."""

from __future__ import annotations

from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer
from services.scheduler.api.backfills import BackfillMethods
from services.scheduler.api.runs import RunMethods
from services.scheduler.api.schedules import ScheduleMethods
from services.scheduler.api.tasks import TaskMethods
from services.scheduler.usecases.backfills import Backfills
from services.scheduler.usecases.runs import Runs
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from services.scheduler.usecases.watching import Watching


class SchedulerServicer(TaskMethods, ScheduleMethods, BackfillMethods, RunMethods, SchedulerServiceServicer):
    """The methods of `aiagent.scheduler.v1.SchedulerService`."""

    def __init__(
        self, tasks: Tasks, schedules: Schedules, backfills: Backfills, runs: Runs, watching: Watching
    ) -> None:
        """Args: the use cases."""
        self._tasks = tasks
        self._schedules = schedules
        self._backfills = backfills
        self._runs = runs
        self._watching = watching
