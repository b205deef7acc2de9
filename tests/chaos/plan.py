"""The plan of a run, made from its seed beforehand: what users do, and what is done to the suite."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FAULTS: dict[tuple[str, str], int] = {
    ("session", "kill"): 3,
    ("session", "term"): 2,
    ("session", "freeze"): 2,
    ("executor", "kill"): 2,
    ("executor", "term"): 1,
    ("executor", "freeze"): 2,
    ("cli", "kill"): 4,
    ("cli", "term"): 1,
    ("cli", "freeze"): 2,
    ("tool", "kill"): 4,
    ("tool", "term"): 1,
    ("tool", "freeze"): 2,
    ("valkey", "kill"): 2,
    ("valkey", "flush"): 2,
    ("valkey", "term"): 1,
    ("postgres", "quit"): 1,
    ("postgres", "kill"): 1,
    ("postgres", "int"): 1,
    ("envoy", "kill"): 1,
    ("auth", "kill"): 1,
    ("connections", "cut"): 5,
}
"""Kinds of faults (victim, what is done) with their weights. PostgreSQL's `quit` is its immediate stop."""
FREEZE_SECONDS = 8.0
QUIET_SECONDS = 3.0
"""The users' last act comes so long before the last fault."""


@dataclass(frozen=True)
class Fault:
    """At `at` seconds, something is done to a victim; `pick`, in [0, 1), chooses among those that are there."""

    at: float
    kind: str
    how: str
    pick: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Act:
    """A user does something at `at` seconds, or as soon after it as they come to it."""

    at: float
    user: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A run."""

    seed: int
    seconds: float
    users: int
    faults: list[Fault]
    acts: list[Act]

    def save(self, path: Path) -> None:
        """Writes the plan as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def make(seed: int, seconds: float, *, users: int = 5, pace: float = 4.0) -> Plan:
    """Makes the plan of a seed.

    Args:
        seed: The same seed, the same plan.
        seconds: How long faults are done.
        users: How many users, each with one session at a time; every other one is asked before a tool runs.
        pace: Seconds between two faults, on average.
    """
    choose = random.Random(seed)
    faults = _faults(choose, seconds, pace)
    acts = [act for user in range(users) for act in _acts(choose, user, faults[-1].at - QUIET_SECONDS)]
    return Plan(seed, seconds, users, faults, sorted(acts, key=lambda act: (act.at, act.user)))


def _faults(choose: random.Random, seconds: float, pace: float) -> list[Fault]:
    kinds = list(FAULTS)
    # Dealt from a shuffled deck: over its length, every kind comes as often as it weighs.
    deck: list[tuple[str, str]] = []
    faults = []
    at = 3.0
    while at < seconds or not faults:
        if not deck:
            deck = choose.sample([kind for kind in kinds for _ in range(FAULTS[kind])], sum(FAULTS.values()))
        kind, how = deck.pop()
        held = round(choose.uniform(0.5, FREEZE_SECONDS), 2) if how == "freeze" else 0.0
        faults.append(Fault(round(at, 2), kind, how, round(choose.random(), 4), held))
        at += max(0.3, choose.expovariate(1 / pace))
    return faults


def _acts(choose: random.Random, user: int, until: float) -> list[Act]:
    weights = {"message": 10, "interrupt": 2, "watch": 5, "upload": 1, "fresh": 1}
    acts = [Act(0.0, user, "fresh", {"asks": user % 2 == 0})]
    at, number = choose.uniform(0.2, 1.5), 0
    while at < until:
        number += 1
        kind = choose.choices(list(weights), list(weights.values()))[0] if number > 1 else "message"
        match kind:
            case "message":
                data = _message(choose, f"u{user}n{number}")
            case "watch":
                data = {
                    "slot": choose.randrange(2),
                    "deltas": choose.random() < 0.8,
                    "anew": choose.random() < 0.3,
                }
            case "upload":
                data = {"name": f"upload-{user}-{number}.txt", "text": f"{choose.random()}"}
            case "fresh":
                data = {"asks": choose.random() < 0.5}
            case _:
                data = {}
        acts.append(Act(round(at, 2), user, kind, data))
        at += max(0.2, choose.expovariate(1 / 2.5))
    return acts


def _message(choose: random.Random, mark: str) -> dict[str, Any]:
    steps = [
        {
            "token": f"{mark}s{step}",
            "words": choose.choice((0, 0, 8, 20)),
            "sleep": choose.choice((0.0, 0.3, 0.8, 1.5)),
            "allow": choose.random() < 0.8,
            "after": choose.choice((0.05, 0.3, 1.0, 2.0)),
        }
        for step in range(choose.choice((0, 1, 1, 2, 2, 3)))
    ]
    return {
        "mark": mark,
        "steps": steps,
        "recalls": choose.random() < 0.3,
        "words": choose.choice((3, 30, 60)),
        "pace": choose.choice((30, 60, 400)),
        "when_busy": choose.choices(("ENQUEUE", "INTERRUPT", "REJECT"), (8, 1, 1))[0],
    }
