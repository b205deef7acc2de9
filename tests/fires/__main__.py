"""`python -m tests.fires`: schedules fire once, whatever is killed meanwhile; `make fires`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from pathlib import Path

from services.kernel.telemetry import configure_logging

from .floor import Crew
from .running import Plan, run


def main() -> int:
    """Runs a plan, prints what came of it; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.fires", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the plan; a random one if left out")
    parser.add_argument("--schedules", type=int, default=1000, help="each fires once")
    parser.add_argument("--seconds", type=float, default=60.0, help="within how long they fire")
    parser.add_argument(
        "--pace", type=float, default=2.0, help="seconds between two kills, on average; 0 for none"
    )
    parser.add_argument(
        "--turn", type=float, default=1.0, help="seconds of the longest turn of a played agent"
    )
    parser.add_argument("--schedulers", type=int, default=3)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--kafka",
        action="store_true",
        help="on the broker that AIAGENT_KAFKA_* name, as tests.apache_kafka does",
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    kafka = pid = None
    if arguments.kafka:
        kafka = {name: value for name, value in os.environ.items() if name.startswith("AIAGENT_KAFKA_")}
        pid = Path(os.environ["KAFKA_PID_FILE"])
    crew = Crew(schedulers=arguments.schedulers, workers=arguments.workers, kafka=kafka, broker_pid=pid)
    plan = Plan(seed, arguments.schedules, arguments.seconds, arguments.pace, arguments.turn, crew)
    # Killed processes and played calls would be all that is seen.
    configure_logging("CRITICAL")
    print(f"seed {seed}", flush=True)
    outcome = asyncio.run(run(plan))
    print(json.dumps(outcome.figures, indent=1))
    for violation in outcome.violations[:50]:
        print(f"VIOLATION {violation}", file=sys.stderr)
    print(f"{len(outcome.violations)} violations")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
