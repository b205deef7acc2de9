"""`python -m services.session serve|migrate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from services.kernel import lifecycle
from services.kernel.db.migrations import upgrade
from services.kernel.errors import ServiceError
from services.kernel.telemetry import configure_logging
from services.session.bootstrap import build
from services.session.settings import SessionSettings


async def _serve(settings: SessionSettings) -> None:
    await lifecycle.run([await build(settings)], grace_seconds=settings.drain_seconds)


async def _migrate(settings: SessionSettings) -> None:
    if settings.session_owner_database_url is None:
        raise OSError("AIAGENT_SESSION_OWNER_DATABASE_URL is not set")
    url = settings.session_owner_database_url.get_secret_value()
    print(await upgrade(url, "session", Path(__file__).parent / "migrations"))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.session")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve until SIGTERM")
    commands.add_parser("migrate", help="bring the schema up to date, as its owner")
    arguments = parser.parse_args()
    settings = SessionSettings()
    configure_logging(settings.log_level)
    try:
        uvloop.run(_migrate(settings) if arguments.command == "migrate" else _serve(settings))
    except (ServiceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
