"""What the main job costs: start, idle memory, first tokens. Everything is real but the model.

Run it with `.venv/bin/python benchmarks/main_job.py`; it starts a suite of its own on a free port, prints a table and,
with `--json`, the figures for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from aiagent_client import Client, TextDelta
from tests.running_suite import RunningSuite

SPEECH = '<<SCRIPT>>[{"text": "one two three four five six seven eight nine ten"}]<<END>>'
SESSIONS = 7
TURNS = 20


def _pss_mib(suite: RunningSuite) -> float:
    processes = [psutil.Process(suite.process.pid), *suite.processes()] if suite.process else []
    return sum(process.memory_full_info().pss for process in processes) / 2**20


async def _first_token_ms(client: Client, session_id: str, after: int) -> tuple[float, int]:
    """Sends a message; returns milliseconds to its first token, and the log's end."""
    begun = time.perf_counter()
    turn = await client.sessions.send(session_id, SPEECH)
    first = 0.0
    last = after
    async for item in client.sessions.watch(session_id, cursor=after, until_idle=True):
        if isinstance(item, TextDelta) and item.turn_id == turn.id and not first:
            first = (time.perf_counter() - begun) * 1000
        if not isinstance(item, TextDelta):
            last = item.sequence
    return first, last


async def measure() -> dict[str, float]:
    """Runs everything once and returns the figures."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-bench-"))
    suite = RunningSuite(directory / "state")
    try:
        begun = time.perf_counter()
        await suite.start()
        figures = {"first start to ready, s": time.perf_counter() - begun}
        await suite.stop()
        begun = time.perf_counter()
        await suite.start()
        figures["start to ready, s"] = time.perf_counter() - begun
        figures["idle memory of all processes (PSS), MiB"] = _pss_mib(suite)
        name = f"bench{uuid4().hex[:8]}"
        async with Client(suite.base_url) as client:
            await client.auth.register(
                email=f"{name}@example.com", username=name, password="a long password", full_name="Bench"
            )
            await client.auth.login(f"{name}@example.com", "a long password")
            new, following = [], []
            for _ in range(SESSIONS):
                session = await client.sessions.create(name="bench")
                first, last = await _first_token_ms(client, session.id, 0)
                new.append(first)
            for _ in range(TURNS):
                first, last = await _first_token_ms(client, session.id, last)
                following.append(first)
        figures["new session to first token, median ms"] = statistics.median(new)
        figures["next turn to first token, median ms"] = statistics.median(following)
        return figures
    finally:
        await suite.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    figures = asyncio.run(measure())
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    memory = psutil.virtual_memory().total / 2**30
    today = datetime.now(UTC).date()
    print(f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {today}")
    for name, value in figures.items():
        print(f"  {name:<44} {value:8.1f}")


if __name__ == "__main__":
    main()
