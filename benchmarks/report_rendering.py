"""Reports rendered by one process at a time: a session of 100 turns in every format, and HTML of 50,000 events.

Each is rendered as the service does it: by a process of its own, started for it, so that starting it and loading the
libraries is in the figures. The processor's time tells what it takes on one core whatever else the machine does; memory
is the highest that the process held.

Run it with `.venv/bin/python benchmarks/report_rendering.py`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measurement import machine, table
from services.reports.gateways.rendering.processes import Format, RenderLimits, RenderProcesses
from tests.unit.reports import documents

EVENTS_OF_A_TURN = 5
CASES = (
    ("session of 100 turns", 100, Format.PDF),
    ("session of 100 turns", 100, Format.HTML),
    ("session of 100 turns", 100, Format.MARKDOWN),
    ("session of 100 turns", 100, Format.JSON),
    ("50,000 events", 50_000 // EVENTS_OF_A_TURN, Format.HTML),
    ("50,000 events", 50_000 // EVENTS_OF_A_TURN, Format.MARKDOWN),
    ("50,000 events", 50_000 // EVENTS_OF_A_TURN, Format.JSON),
    ("50,000 events, cut", 50_000 // EVENTS_OF_A_TURN, Format.PDF),
)


async def measure(folder: Path, turns: int, name: Format, processes: RenderProcesses) -> dict[str, str]:
    """Returns a row: time, processor time, the most memory, size and pages."""
    document = folder / f"{turns}.document"
    if not document.exists():
        documents.write(documents.session(turns), document)
    memory: list[int] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    task = asyncio.create_task(processes.render(document, {name: folder / "report"}))
    while not task.done():
        memory.append(peak_of_children())
        await asyncio.sleep(0.02)
    made = (await task)[name]
    took = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "time": f"{took:.2f} s",
        "processor": f"{processor:.2f} s",
        "memory": f"{max(memory) / 1024:.0f} MB",
        "size": f"{made.bytes / 1e6:.2f} MB",
        "pages": str(made.pages or ""),
    }


def peak_of_children() -> int:
    """Returns the most memory in KiB that a child of this process has held so far."""
    most = 0
    for number in Path("/proc/self/task").iterdir():
        for child in (number / "children").read_text().split():
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except OSError:
                continue
            most = max(
                most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0
            )
    return most


async def main() -> None:
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        processes = RenderProcesses(folder / "fonts", 1, RenderLimits(nice=0))
        await measure(folder, 1, Format.PDF, processes)  # fontconfig reads our fonts once on a machine
        rows = [
            {"what": f"{what} as {name.value}", **await measure(folder, turns, name, processes)}
            for what, turns, name in CASES
        ]
    print(json.dumps(machine()))
    print(table(rows))


if __name__ == "__main__":
    asyncio.run(main())
