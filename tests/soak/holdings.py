"""What the processes of a suite hold: memory, descriptors, threads, tasks; and how that changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.running_suite import RunningSuite

from .outcome import Outcome

_TASKS = "aiagent_asyncio_tasks "
ALL = "services"
"""The one process of a suite that is not in processes."""
_SETTLE_LOOKS = 8
_SETTLE_SECONDS = 0.1
KINDS = ("PSS, KiB", "own memory, KiB", "descriptors", "threads", "tasks")
"""Own memory is what is no file's: how a file's pages are shared out changes with whoever else has them open."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds; the tasks of those that tell them."""

    pss_kib: int
    own_kib: int
    descriptors: int
    threads: int
    tasks: int

    def of(self, kind: str) -> int:
        """One of `KINDS`."""
        return (self.pss_kib, self.own_kib, self.descriptors, self.threads, self.tasks)[KINDS.index(kind)]

    def least(self, other: Holding) -> Holding:
        """The lower of each: what comes and goes by itself is not held."""
        return Holding(*(min(self.of(kind), other.of(kind)) for kind in KINDS))


def supervised(suite: RunningSuite) -> dict[str, int]:
    """The numbers of the suite's processes by name, agents apart."""
    found = {}
    for note in (suite.state_dir / "run").glob("*.pid"):
        with suppress(OSError, ValueError, IndexError):
            found[note.stem] = int(note.read_text(encoding="utf-8").split()[0])
    if suite.process is not None and "session-1" not in found:
        found[ALL] = suite.process.pid
    return found


def _metrics(suite: RunningSuite) -> Mapping[str, str]:
    note = json.loads((suite.state_dir / "run" / "suite.json").read_text(encoding="utf-8"))
    if len(note["metrics"]) == 1:
        return {ALL: note["metrics"][0]}
    return dict(zip(note["replicas"], note["metrics"], strict=True))


def _of_process(pid: int) -> tuple[int, int, int, int]:
    root = Path(f"/proc/{pid}")
    lines = (root / "smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    memory = {line.split()[0]: int(line.split()[1]) for line in lines}
    descriptors, threads = (sum(1 for _ in (root / name).iterdir()) for name in ("fd", "task"))
    return memory["Pss:"], memory["Pss_Anon:"], descriptors, threads


async def _once(suite: RunningSuite, client: aiohttp.ClientSession) -> dict[str, Holding]:
    pids, targets = supervised(suite), _metrics(suite)
    held = {}
    for name, pid in sorted(pids.items()):
        tasks = 0
        if name in targets:
            async with client.get(f"http://{targets[name]}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            tasks = int(float(next(line for line in lines if line.startswith(_TASKS)).split()[1]))
        held[name] = Holding(*_of_process(pid), tasks)
    return held


async def look(suite: RunningSuite) -> dict[str, Holding]:
    """What each process holds at rest: the least of several looks."""
    async with aiohttp.ClientSession() as client:
        held = await _once(suite, client)
        looks = 1
        while looks < _SETTLE_LOOKS:
            await asyncio.sleep(_SETTLE_SECONDS)
            again = await _once(suite, client)
            held = {name: held[name].least(holding) for name, holding in again.items()}
            looks += 1
    return held


SERVICES = frozenset({"auth-1", "executor-1", "scheduler-1", "session-1", "session-2", ALL})
SLACK = {"descriptors": 12, "threads": 6, "tasks": 12}
"""By how much these may differ between two looks: pools open connections and threads when they are needed."""
OWN_KIB_PER_TURN = 8.0
"""Memory that grows faster than this is held. Below are caches that have not met all there is to meet."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was held after so many turns."""

    turns: int
    held: dict[str, Holding]


def judge(outcome: Outcome, name: str, seen: Sequence[Look], *, memory: bool) -> None:
    """Notes what was held, and what of it has grown.

    Args:
        outcome: Where.
        name: What was done meanwhile.
        seen: The looks, in order.
        memory: Whether there were turns enough to judge memory by.
    """
    for process in sorted(set.intersection(*(set(one.held) for one in seen))):
        for kind in KINDS:
            values = [(float(one.turns), float(one.held[process].of(kind))) for one in seen]
            first, last = int(values[0][1]), int(values[-1][1])
            if kind == "PSS, KiB" or (kind in SLACK and process in SERVICES):
                outcome.figures[f"{name}: {process}: {kind}, first and last"] = f"{first}, {last}"
            if kind == "own memory, KiB":
                growth = slope(values)
                outcome.figures[f"{name}: {process}: own memory, KiB more each turn"] = round(growth, 2)
                outcome.must(
                    growth <= OWN_KIB_PER_TURN or not memory or process not in SERVICES,
                    f"{name}: {process} keeps {growth:.1f} KiB of each turn",
                )
            elif kind in SLACK and process in SERVICES:
                # The least of the later half: a peak while the machine is busy is no growth.
                later = min(value for _, value in values[len(values) // 2 :])
                outcome.must(
                    later - first <= SLACK[kind], f"{name}: {process} has {later:.0f} {kind} after {first}"
                )


def slope(values: Sequence[tuple[float, float]]) -> float:
    """By how much the second value grows for each of the first: least squares."""
    count = len(values)
    middle_x, middle_y = sum(x for x, _ in values) / count, sum(y for _, y in values) / count
    below = sum((x - middle_x) ** 2 for x, _ in values)
    return sum((x - middle_x) * (y - middle_y) for x, y in values) / below if below else 0.0
