"""Turns whose tokens carry the time of their sending, and what observers make of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measurement import CpuMeter, percentile
from tests.e2e.script import prompt

TOKENS_PER_SECOND = 50
WARM_UP_TOKENS = TOKENS_PER_SECOND
"""Left out of each stream: its first second holds the start of all turns at once."""
STARTS_AT_ONCE = 2


def speech(tokens: int) -> str:
    """A message that the offline model answers with so many stamped tokens."""
    return prompt({"text": "x " * tokens, "stamped": True, "tokens_per_second": TOKENS_PER_SECOND})


@dataclass
class Stream:
    """What one observer has seen of one turn: how long each token took, in milliseconds."""

    milliseconds: list[float] = field(default_factory=list)
    request_id: str = ""
    _rest: str = ""

    def take(self, text: str) -> None:
        """Reads the stamps of a piece of text; a piece may hold several, or end within one."""
        now = time.monotonic_ns()
        *whole, self._rest = (self._rest + text).split(" ")
        self.milliseconds += [(now - int(stamp)) / 1e6 for stamp in whole if stamp]


@dataclass
class Sample:
    """One run of one way with so many streams at once, seen from one place.

    Attributes:
        place: `driving` or `other`: the replica that was watched; `process` for the floor.
        cpu: Milliseconds of CPU for each 1,000 tokens, by kind of process.
    """

    way: str
    place: str
    streams: int
    milliseconds: list[float]
    cpu: dict[str, float]

    def row(self) -> dict[str, Any]:
        """The figures."""
        seen = self.milliseconds
        return {
            "way": f"{self.way}, {self.place}",
            "streams": self.streams,
            "tokens": len(seen),
            **{f"p{percent}_ms": round(percentile(seen, percent), 3) for percent in (50, 90, 99)},
            "max_ms": round(max(seen), 3),
            **{f"cpu_{name}": round(value, 1) for name, value in self.cpu.items()},
        }


def cpu_per_1000_tokens(meter: CpuMeter, tokens: int) -> dict[str, float]:
    """Stops the meter; milliseconds for each group of processes."""
    return {name: seconds * 1e6 / tokens for name, seconds in meter.stop().items()}


async def in_twos(works: Sequence[Any]) -> None:
    """Runs the works, two at a time: more CLIs starting at once only slow each other."""
    gate = asyncio.Semaphore(STARTS_AT_ONCE)

    async def one(work: Any) -> None:
        async with gate:
            await work

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(one(work))
