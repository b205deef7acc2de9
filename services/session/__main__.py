"""`python -m services.session serve|migrate`."""

from __future__ import annotations

import sys

from services.kernel.command_line import Command, main
from services.kernel.db.outbox import PublishError
from services.session.bootstrap import build, migrate
from services.session.settings import SessionSettings

if __name__ == "__main__":
    sys.exit(
        main(
            "session",
            SessionSettings,
            build,
            commands={
                "migrate": Command(
                    "bring the schema up to date, as its owner, and create the topics", migrate
                )
            },
            expected=(PublishError,),
        )
    )
