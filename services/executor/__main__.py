"""`python -m services.executor serve`."""

from __future__ import annotations

import argparse
import sys

import uvloop

from services.executor.bootstrap import build
from services.executor.settings import ExecutorSettings
from services.kernel import lifecycle
from services.kernel.errors import ServiceError
from services.kernel.telemetry import MetricsServer, configure_logging


async def _serve(settings: ExecutorSettings) -> None:
    metrics = None
    if settings.metrics_listen:
        host, _, port = settings.metrics_listen.rpartition(":")
        metrics = MetricsServer(host, int(port))
        await metrics.start()
    try:
        await lifecycle.run([await build(settings)], grace_seconds=settings.drain_seconds)
    finally:
        if metrics is not None:
            await metrics.stop()


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.executor")
    parser.add_subparsers(dest="command", required=True).add_parser("serve", help="serve until SIGTERM")
    parser.parse_args()
    settings = ExecutorSettings()
    configure_logging(settings.log_level)
    try:
        uvloop.run(_serve(settings))
    except (ServiceError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
