"""A run's outcome for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .running import Outcome

PROMISES = (
    "event lost", "event doubled", "text not that of its message", "turn without an end", "turn ended late",
    "tool run without a decision", "tool run twice for one call", "answer lost", "conversation forgotten",
    "process left over", "not started again",
)  # fmt: skip
"""Those that a table shows even at zero."""


def counts(outcome: Outcome) -> dict[str, int]:
    """Violations by promise."""
    found = dict.fromkeys(PROMISES, 0)
    for violation in outcome.violations:
        found[violation.promise] = found.get(violation.promise, 0) + 1
    return found


def table(outcome: Outcome) -> str:
    """The figures as text."""
    lines = [f"seed {outcome.plan.seed}, {outcome.plan.seconds:.0f} s of faults"]
    for title, values in (
        ("faults", outcome.faults),
        ("longest recovery by fault, s", outcome.recoveries),
        ("figures", outcome.figures),
        ("statuses of calls", outcome.statuses),
        ("violations", counts(outcome)),
    ):
        lines.append(f"\n{title}")
        lines += [f"  {name:<60} {value:>10}" for name, value in values.items()]
    return "\n".join(lines)


def complaint(outcome: Outcome) -> str:
    """What was violated, and where to look."""
    lines = [str(violation) for violation in outcome.violations]
    lines += [
        f"seed: {outcome.plan.seed}",
        f"plan: {outcome.folder / 'plan.json'}",
        f"records: {outcome.folder / 'records.json'}",
        *(f"log: {path}" for path in sorted((outcome.state / "logs").glob("*.log"))),
    ]
    return "\n".join(lines)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The figures for programs."""
    return {
        "seed": outcome.plan.seed,
        "seconds": outcome.plan.seconds,
        "users": outcome.plan.users,
        "faults": outcome.faults,
        "longest_recovery_seconds": outcome.recoveries,
        "figures": outcome.figures,
        "statuses": outcome.statuses,
        "violations": counts(outcome),
        "what": [str(violation) for violation in outcome.violations],
    }


def write(outcome: Outcome, path: Path) -> None:
    """Writes the figures as JSON."""
    path.write_text(json.dumps(as_json(outcome), indent=1), encoding="utf-8")
