"""`python -m tests.fires.proofs`: the long proofs that a fire makes one run, one after another; `make proofs`.

Each goes on where another one failed; a summary comes last. Ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from tests.apache_kafka.__main__ import CANNOT

ROOT: Final = Path(__file__).parents[2]


class Proof(NamedTuple):
    """What is run, and what it is called in the summary."""

    name: str
    command: tuple[str, ...]


def proofs(schedules: int, runs: int) -> list[Proof]:
    """Those that there are, by how much each is to do."""
    python = (sys.executable, "-m")
    fires = (*python, "tests.fires", "--schedules", str(schedules))
    return [
        Proof(f"{schedules} schedules on the local broker", fires),
        Proof(f"{schedules} schedules on Apache Kafka", (*python, "tests.apache_kafka", *fires, "--kafka")),
        Proof(f"{runs} runs by the real agent", (*python, "tests.fires.real", "--runs", str(runs))),
    ]


def run(proof: Proof) -> tuple[str, float]:
    """Runs one, whose output is seen; returns what it came to, and the seconds it took."""
    print(f"\n=== {proof.name}", flush=True)
    begun = time.monotonic()
    status = subprocess.run(proof.command, cwd=ROOT, check=False).returncode
    outcome = {0: "holds", CANNOT: "left out"}.get(status, f"FAILED with status {status}")
    return outcome, time.monotonic() - begun


def main() -> int:
    """Runs all, and prints the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.fires.proofs", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="of the first two")
    parser.add_argument("--runs", type=int, default=50, help="of the last one")
    arguments = parser.parse_args()
    outcomes = [(proof, *run(proof)) for proof in proofs(arguments.schedules, arguments.runs)]
    print("\n=== summary")
    for proof, outcome, seconds in outcomes:
        print(f"{proof.name:40} {outcome:24} {seconds:6.0f} s")
    return 1 if any(outcome.startswith("FAILED") for _, outcome, _ in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
