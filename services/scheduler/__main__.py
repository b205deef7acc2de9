"""`python -m services.scheduler serve|worker|migrate`."""

from __future__ import annotations

import sys

from services.kernel.command_line import Command, Role, main
from services.kernel.db.outbox import PublishError
from services.scheduler.bootstrap import build, build_worker, migrate
from services.scheduler.settings import SchedulerSettings

if __name__ == "__main__":
    sys.exit(
        main(
            "scheduler",
            SchedulerSettings,
            build,
            roles={"worker": Role("carry runs of tasks until SIGTERM, without serving calls", build_worker)},
            commands={
                "migrate": Command("bring the schema up to date, as its owner, and create the topic", migrate)
            },
            expected=(PublishError,),
        )
    )
