"""`python -m deploy.local run|executor|migrate|status|stop`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import structlog
import uvloop

from deploy.local import services
from deploy.local.console import show_warnings
from deploy.local.joining import join, joined
from deploy.local.servers import listens
from deploy.local.settings import load
from deploy.local.state import LocalError, StateDirectory
from deploy.local.suite import Options, Suite
from services.kernel.errors import ServiceError
from services.kernel.telemetry import configure_logging

_log = structlog.get_logger(__name__)
_STOP_SECONDS = 60.0


def _options(arguments: argparse.Namespace) -> Options:
    counts = dict.fromkeys(services.NAMES, 1)
    for part in filter(None, (arguments.replicas or "").split(",")):
        name, _, number = part.partition("=")
        if name not in counts or not number.isdigit() or int(number) < 1:
            raise LocalError(f"--replicas: {part!r} is not SERVICE=NUMBER with one of {', '.join(counts)}")
        counts[name] = int(number)
    if arguments.executors:
        counts["executor"] = arguments.executors
    processes = arguments.processes or max(counts.values()) > 1 or arguments.workers is not None
    workers = 1 if arguments.workers is None else arguments.workers
    return Options(processes=processes, counts=counts, workers=workers)


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _positive(text: str) -> int:
    if _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _suite(options: Options) -> Suite:
    settings = load()
    state = StateDirectory(settings.state_dir)
    state.open()
    state.rotate_logs()
    configure_logging(settings.log_level, file=state.path / "logs" / "services.log")
    show_warnings()
    return Suite(settings, state, options)


def _to_the_end(suite: Suite, work: Coroutine[Any, Any, None]) -> int:
    try:
        uvloop.run(work)
    except asyncio.CancelledError:
        return 1  # stopped before it was up
    except BaseExceptionGroup as group:
        known, unknown = group.split((LocalError, ServiceError, OSError))
        if known is None or unknown is not None:
            return _unexpected(suite, group)
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise LocalError(str(first)) from group
    except (ServiceError, OSError) as error:
        raise LocalError(str(error)) from error
    except LocalError:
        raise
    except Exception as error:
        return _unexpected(suite, error)
    return 0


def _unexpected(suite: Suite, error: BaseException) -> int:
    _log.error("the suite ended", exc_info=error)
    print(
        f"error: {error!r}; its traceback is in {suite.state.path / 'logs' / 'services.log'}", file=sys.stderr
    )
    return 1


def _run(arguments: argparse.Namespace) -> int:
    suite = _suite(_options(arguments))
    return _to_the_end(suite, suite.run())


def _executor(_: argparse.Namespace) -> int:
    settings = load()
    configure_logging(settings.log_level)
    uvloop.run(join(StateDirectory(settings.state_dir)))
    return 0


def _migrate(_: argparse.Namespace) -> int:
    suite = _suite(Options())
    return _to_the_end(suite, suite.migrate())


def _status(_: argparse.Namespace) -> int:
    state = StateDirectory(load().state_dir)
    pid = state.holder()
    if pid is None:
        print(f"not running in {state.path}")
        return 1
    try:
        note = json.loads((state.path / "run" / "suite.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    if note.get("pid") != pid:
        print(f"starting, pid {pid}")
        return 1
    print(f"running, pid {pid}, {note['base_url']}")
    added = joined(state)
    targets = {"public": note["public"], **note["replicas"], **{each.name: each.listen for each in added}}
    workers: dict[str, str] = note["workers"]

    async def healthy() -> list[bool]:
        return list(
            await asyncio.gather(
                *(services.Serving(target)() for target in targets.values()),
                *(services.Ready(metrics)() for metrics in workers.values()),
            )
        )

    found = asyncio.run(healthy())
    for (name, target), serving in zip(targets.items(), found, strict=False):
        print(f"  {name:<14} {target:<22} {'serving' if serving else 'not serving'}")
    for name, ready in zip(workers, found[len(targets) :], strict=True):
        print(f"  {name:<37} {'working' if ready else 'not working'}")
    if note.get("kafka"):
        brokers = note["kafka"].removeprefix("kafka://")
        print(f"  {'kafka':<14} {brokers:<22} {'takes connections' if _reachable(brokers) else 'not there'}")
    for target in [*note["metrics"], *workers.values(), *(each.metrics for each in added)]:
        print(f"  metrics        http://{target}/metrics")
    return 0 if all(found) else 1


def _reachable(brokers: str) -> bool:
    """Whether one of the brokers takes connections."""
    for broker in brokers.split(","):
        host, _, port = broker.strip().rpartition(":")
        if asyncio.run(listens(host, int(port))):
            return True
    return False


def _stop(_: argparse.Namespace) -> int:
    state = StateDirectory(load().state_dir)
    pid = state.holder()
    if pid is None:
        print(f"not running in {state.path}")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while state.holder() == pid:
        if time.monotonic() > deadline:
            raise LocalError(f"pid {pid} does not end")
        time.sleep(0.1)
    print("stopped")
    return 0


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description="The whole suite on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start everything and stay up")
    run.add_argument("--processes", action="store_true", help="one process for each service")
    run.add_argument("--replicas", metavar="SERVICE=N,…", help="several replicas, as in session=2,executor=2")
    run.add_argument(
        "--executors", metavar="N", type=_positive, help="several executors, each with its own agents"
    )
    run.add_argument(
        "--workers",
        metavar="N",
        type=_number,
        help="processes that carry runs of tasks; 1 with --processes, 0 leaves it to the scheduler's own",
    )
    run.set_defaults(do=_run)
    executor = commands.add_parser("executor", help="add an executor to the suite that runs, until Ctrl-C")
    executor.set_defaults(do=_executor)
    commands.add_parser("migrate", help="bring the schemas up to date").set_defaults(do=_migrate)
    commands.add_parser("status", help="tell whether it runs and serves").set_defaults(do=_status)
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
