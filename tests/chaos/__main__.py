"""`python -m tests.chaos`: a run of the fault harness; `make chaos`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from . import plan, report
from .running import Run, forget


def main() -> int:
    """Runs a plan, prints what came of it; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the plan; a random one if left out")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are done")
    parser.add_argument("--users", type=int, default=5)
    parser.add_argument("--pace", type=float, default=4.0, help="seconds between two faults, on average")
    parser.add_argument("--replicas", type=int, default=2, help="of the session service")
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, help="where to write the figures; into the run's folder if left out"
    )
    parser.add_argument("--keep", action="store_true", help="keep the run's folder even if all is well")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    made = plan.make(seed, arguments.minutes * 60, users=arguments.users, pace=arguments.pace)
    folder = Path(tempfile.mkdtemp(prefix="aiagent-chaos-"))
    print(f"seed {seed}; plan and records in {folder}", flush=True)
    run = Run(made, folder, replicas=arguments.replicas, executors=arguments.executors, quiet=False)
    outcome = asyncio.run(run.run())
    print(report.table(outcome))
    report.write(outcome, arguments.json or folder / "figures.json")
    if outcome.violations:
        print(f"\n{report.complaint(outcome)}", file=sys.stderr)
        return 1
    if not arguments.keep:
        forget(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
