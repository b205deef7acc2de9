"""`python -m services.auth serve|migrate|rotate-keys`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop
from pydantic import ValidationError

from services.auth.bootstrap import build, migrate, rotate_keys
from services.auth.settings import AuthSettings
from services.auth.usecases.ports import FileNotWritten
from services.kernel.errors import ServiceError
from services.kernel.lifecycle import run
from services.kernel.telemetry import MetricsServer, configure_logging


def _announce(email: str, _password: str, path: Path) -> None:
    # Standard output of a service ends up in somebody's log.
    print(f"administrator {email} created, password in {path}", flush=True)


async def _serve(settings: AuthSettings) -> None:
    metrics = None
    if settings.metrics_listen:
        host, _, port = settings.metrics_listen.rpartition(":")
        metrics = MetricsServer(host, int(port))
        await metrics.start()
    try:
        await run([await build(settings, announce=_announce)], grace_seconds=settings.drain_seconds)
    finally:
        if metrics is not None:
            await metrics.stop()


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.auth", description="Accounts and tokens.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve until SIGTERM")
    commands.add_parser("migrate", help="bring the schema up to date")
    commands.add_parser("rotate-keys", help="add a signing key, which takes over in ten minutes")
    command = parser.parse_args().command
    try:
        settings = AuthSettings()
        configure_logging(settings.log_level)
        if command == "serve":
            uvloop.run(_serve(settings))
        elif command == "migrate":
            print(f"schema auth is at {uvloop.run(migrate(settings))}")
        else:
            print(f"signing key {uvloop.run(rotate_keys(settings))} added")
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"error: AIAGENT_{name}: {problem['msg']}", file=sys.stderr)
        return 2
    except (ServiceError, FileNotWritten, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
