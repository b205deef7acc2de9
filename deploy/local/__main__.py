"""`python -m deploy.local run|status|stop`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import uvloop

from deploy.local.state import LocalError, StateDirectory
from deploy.local.suite import SERVICES, Options, Suite
from services.kernel.telemetry import configure_logging


def _options(arguments: argparse.Namespace) -> Options:
    counts = dict.fromkeys(SERVICES, 1)
    for part in filter(None, (arguments.replicas or "").split(",")):
        name, _, number = part.partition("=")
        if name not in counts or not number.isdigit() or int(number) < 1:
            raise LocalError(f"--replicas: {part!r} is not SERVICE=NUMBER with one of {', '.join(SERVICES)}")
        counts[name] = int(number)
    port = os.environ.get("AIAGENT_HTTP_PORT", "8080")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise LocalError(f"AIAGENT_HTTP_PORT: {port!r} is not a port")
    return Options(
        state_dir=_state_dir(),
        host=os.environ.get("AIAGENT_HTTP_HOST", "127.0.0.1"),
        port=int(port),
        processes=arguments.processes or max(counts.values()) > 1,
        counts=counts,
    )


def _state_dir() -> Path:
    return Path(os.environ.get("AIAGENT_STATE_DIR", ".aiagent"))


def _run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    options.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs = options.state_dir / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    configure_logging(os.environ.get("AIAGENT_LOG_LEVEL", "INFO"), file=logs / "services.log")
    try:
        uvloop.run(Suite(options).run())
    except BaseExceptionGroup as group:
        mendable, others = group.split(LocalError)
        if others is not None or mendable is None:
            raise
        raise mendable.exceptions[0] from None
    return 0


def _status(_: argparse.Namespace) -> int:
    pid = StateDirectory(_state_dir()).holder()
    print(f"running, pid {pid}" if pid else "not running")
    return 0 if pid else 1


def _stop(_: argparse.Namespace) -> int:
    state = StateDirectory(_state_dir())
    pid = state.holder()
    if pid is None:
        print("not running")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while state.holder() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    print("stopped" if state.holder() is None else f"pid {pid} does not end")
    return 0 if state.holder() is None else 1


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description="The whole suite on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start everything and stay up")
    run.add_argument("--processes", action="store_true", help="one process for each service")
    run.add_argument("--replicas", metavar="SERVICE=N,…", help="several replicas, as in session=2,executor=2")
    run.set_defaults(do=_run)
    commands.add_parser("status", help="tell whether it runs").set_defaults(do=_status)
    commands.add_parser("stop", help="stop it").set_defaults(do=_stop)
    arguments = parser.parse_args()
    try:
        return int(arguments.do(arguments))
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
