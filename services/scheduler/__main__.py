"""`python -m services.scheduler serve|migrate`."""

from __future__ import annotations

import sys

from services.kernel.command_line import Command, main
from services.scheduler.bootstrap import build, migrate
from services.scheduler.settings import SchedulerSettings

if __name__ == "__main__":
    sys.exit(
        main(
            "scheduler",
            SchedulerSettings,
            build,
            commands={"migrate": Command("bring the schema up to date, as its owner", migrate)},
        )
    )
