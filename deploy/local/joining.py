"""An executor that is added to a suite that runs, and taken away from it: `python -m deploy.local executor`."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from deploy.local.children import Child
from deploy.local.environment import DRAIN_SECONDS, Plan, Replica
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.services import Serving
from deploy.local.state import LocalError, StateDirectory
from deploy.local.suite import service_environment

_START_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _note(state: StateDirectory, pid: int | None) -> Mapping[str, Any]:
    try:
        note: Mapping[str, Any] = json.loads((state.path / "run" / "suite.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    if pid is None or note.get("pid") != pid:
        raise LocalError(f"no suite is ready in {state.path}; start one with `make run`")
    return note


def _known(name: str, listen: str) -> Replica:
    service, _, number = name.rpartition("-")
    return Replica(service, int(number), listen, "")


@contextmanager
def _number(run: Path, taken: Collection[str]) -> Iterator[Replica]:
    """The first executor's name that is free; its lock tells the addresses and dies with this process."""
    for number in itertools.count(1):
        if f"executor-{number}" in taken:
            continue
        with (run / f"executor-{number}.lock").open("a", encoding="utf-8") as lock:
            if not _locked(lock):
                continue
            replica = Replica("executor", number, f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{free_port()}")
            lock.truncate(0)
            lock.write(f"{replica.listen} {replica.metrics}")
            lock.flush()
            yield replica
            return


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def joined(state: StateDirectory) -> list[Replica]:
    """The executors that were added and run now, by their names."""
    found = []
    for note in (state.path / "run").glob("executor-*.lock"):
        with note.open(encoding="utf-8") as lock:
            told = lock.read().split()
            if not _locked(lock) and len(told) == 2:
                found.append(Replica("executor", int(note.stem.rpartition("-")[2]), *told))
    return sorted(found, key=lambda replica: replica.number)


async def join(state: StateDirectory) -> None:
    """Runs one more executor until it is told to end, or the suite ends.

    Args:
        state: The suite's, held by the process that runs it.

    Raises:
        LocalError: No suite is ready there, or the executor does not start.
    """
    pid = state.holder()
    note = _note(state, pid)
    with _number(state.path / "run", note["replicas"]) as replica:
        await _serve(state, pid, _plan(state, note, replica), replica)


def _plan(state: StateDirectory, note: Mapping[str, Any], joining: Replica) -> Plan:
    secrets = state.secrets()
    redis_url = f"redis://:{secrets.redis_password}@{note['redis']}"
    plan = Plan(state.path.resolve(), secrets, {}, redis_url, {})
    plan.replicas = [*(_known(*entry) for entry in note["replicas"].items()), joining]
    plan.counts = dict(Counter(replica.service for replica in plan.replicas))
    return plan


async def _serve(state: StateDirectory, suite: int | None, plan: Plan, replica: Replica) -> None:
    child = Child(
        replica.name,
        [sys.executable, "-m", "services.executor", "serve"],
        state.path / "logs" / f"{replica.name}.log",
        Serving(replica.listen),
        run=plan.state / "run",
        environment=service_environment("executor", plan.environment(replica)),
    )
    stopping = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await child.start(_START_SECONDS)
        print(f"{replica.name} takes turns; Ctrl-C lets it finish them and ends it", flush=True)
        while not stopping.is_set() and state.holder() == suite:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _LOOK_SECONDS)
        print("stopping", flush=True)
    finally:
        await child.stop(DRAIN_SECONDS + 10.0)
