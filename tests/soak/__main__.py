"""`python -m tests.soak`: many starts, many turns and lost replicas, in their full length; `make soak`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurement import machine
from tests.running_suite import RunningSuite

from . import loss, starts, turns
from .outcome import Outcome

IN_PROCESSES = ("--processes", "--replicas", "session=2")
NAMES = ("turns", "starts", "loss")


async def soak(name: str, suite: RunningSuite) -> Outcome:
    """One of `NAMES` in its full length."""
    if name == "starts":
        return await starts.run(suite, starts=200, watchers=200, voices=4)
    if name == "turns":
        return await turns.run(suite, turns=500, sessions=8, warm_up=60, looks=20, memory=True)
    return await loss.run(suite, watchers=100, voices=4, kills=6, words=300)


async def in_its_suite(name: str) -> Outcome:
    """The same, in a suite of its own, whose folder is kept if a promise was not."""
    folder = Path(tempfile.mkdtemp(prefix="aiagent-soak-"))
    arguments: Sequence[str] = () if name == "starts" else IN_PROCESSES
    environment = {"AIAGENT_EXECUTOR_MAX_LIVE_CLIENTS": "10", "AIAGENT_SESSION_MAX_WATCHES_PER_USER": "400"}
    suite = RunningSuite(folder / "state", arguments=arguments, environment=environment)
    await suite.start()
    try:
        outcome = await soak(name, suite)
    finally:
        await suite.stop()
    if outcome.broken:
        print(f"logs: {folder / 'state' / 'logs'}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def main() -> int:
    """Runs what is asked for, one after the other, and prints the figures; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if left out")
    names = parser.parse_args().names or NAMES
    kept = True
    for name in names:
        print(json.dumps(machine()), flush=True)
        outcome = asyncio.run(in_its_suite(name))
        print(f"{outcome.table()}\n", flush=True)
        kept = kept and not outcome.broken
    print(json.dumps(machine()), flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
