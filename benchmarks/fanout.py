"""One session, 500 events, many watchers: how fast one session process tells everybody everything.

A played executor hands the events to the driver, one by one or in batches; the driver commits them to PostgreSQL, and
every watcher gets them over gRPC directly from the process. Watchers live in client processes that only keep the
bytes and look into them when all is over, so that the server has a core for itself as far as the machine lets it.
Measured is the time from the first event's hand-over to the last watcher's last event. Every watcher must have seen
every event once, in order.

Run it with `.venv/bin/python benchmarks/fanout.py`; `--quick` takes half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
# Before gRPC is imported: its fork handlers and our child processes do not go together.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from aiagent.executor.v1 import turn_item_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from benchmarks.measurement import RESULTS, CpuMeter, chart, machine, open_channel, table, write_results
from benchmarks.session_alone import Batch, SessionAlone, in_a_process, line_of, session_alone

EVENTS = 500
CODE = "FANOUT"
TEXT = "what an agent tells in a line or two of some length; " * 4
CLIENT_PROCESSES = 2
WATCHERS_PER_CONNECTION = 25
_WATCH = "/aiagent.session.v1.SessionService/WatchSession"


class Watcher:
    """One call of WatchSession that keeps what it gets, unread."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.ready = asyncio.Event()
        self._responses: list[bytes] = []
        self.end = 0.0

    async def follow(self) -> None:
        """Reads until the turn has ended."""
        async for response in self._call:
            self._responses.append(response)
            self.ready.set()
            # The end is looked for where it can be: in a small response, not in the batches of events.
            if b"SUCCEEDED" in response and self._ended(response):
                self.end = time.monotonic()
                self._call.cancel()
                return

    @staticmethod
    def _ended(response: bytes) -> bool:
        items = pb.WatchSessionResponse.FromString(response).items
        return any(item.event.payload.HasField("turn_ended") for item in items)

    def seen(self) -> tuple[int, bool]:
        """How many of the events arrived, and whether the log arrived whole and in order."""
        events = [
            item.event
            for response in self._responses
            for item in pb.WatchSessionResponse.FromString(response).items
            if item.HasField("event")
        ]
        ours = sum(event.payload.notice.code == CODE for event in events)
        whole = [event.sequence for event in events] == list(range(1, len(events) + 1))
        return ours, whole and ours == EVENTS

    @property
    def responses(self) -> int:
        """How many messages carried it all."""
        return len(self._responses)


async def client(told: dict[str, Any]) -> None:
    """A client process: watches, says when all watchers are there, and reports."""
    metadata = (("authorization", told["authorization"]),)
    request = pb.WatchSessionRequest(session_id=told["session_id"]).SerializeToString()
    count = told["watchers"]
    channels = [open_channel(told["target"]) for _ in range(-(-count // WATCHERS_PER_CONNECTION))]
    watchers = []
    for number in range(count):
        method: Any = channels[number % len(channels)].unary_stream(_WATCH)
        watchers.append(Watcher(method(request, metadata=metadata)))
    async with asyncio.TaskGroup() as group:
        for watcher in watchers:
            group.create_task(watcher.follow())
        for watcher in watchers:
            await watcher.ready.wait()
        print(json.dumps({"ready": count}), flush=True)
    seen = [watcher.seen() for watcher in watchers]
    report = {
        "end": max(watcher.end for watcher in watchers),
        "delivered": sum(ours for ours, _ in seen),
        "complete": sum(complete for _, complete in seen),
        "responses": sum(watcher.responses for watcher in watchers),
    }
    print(json.dumps(report), flush=True)
    for channel in channels:
        await channel.close()


async def run(alone: SessionAlone, watchers: int, batch: int) -> dict[str, Any]:
    """One session, its watchers, its events."""
    begin = asyncio.Event()
    begun = 0.0

    async def says() -> AsyncIterator[Batch]:
        nonlocal begun
        await begin.wait()
        notice = turn_item_pb2.TurnItem()
        notice.notice.code, notice.notice.message = CODE, TEXT
        begun = time.monotonic()
        for first in range(0, EVENTS, batch):
            items = [turn_item_pb2.TurnItem() for _ in range(min(batch, EVENTS - first))]
            for item in items:
                item.CopyFrom(notice)
            yield items

    alone.executor.says = says
    channel = open_channel(alone.target)
    stub = SessionServiceStub(channel)
    session = await stub.CreateSession(pb.CreateSessionRequest(name="fanout"), metadata=alone.metadata)
    await stub.SendMessage(
        pb.SendMessageRequest(session_id=session.id, message="tell"), metadata=alone.metadata
    )
    processes = min(CLIENT_PROCESSES, watchers)
    shares = [watchers // processes + (number < watchers % processes) for number in range(processes)]
    clients = []
    for share in shares:
        told = {
            "authorization": alone.metadata[0][1],
            "session_id": session.id,
            "target": alone.target,
            "watchers": share,
        }
        clients.append(await in_a_process("benchmarks/fanout.py", "--client", told=told))
    for process in clients:
        await line_of(process)
    await asyncio.sleep(1.0)
    meter = CpuMeter({"session": [alone.process], "others": alone.others})
    meter.start()
    begin.set()
    reports = [await line_of(process) for process in clients]
    cpu = meter.stop()
    for process in clients:
        await process.wait()
    await channel.close()
    seconds = max(report["end"] for report in reports) - begun
    delivered = sum(report["delivered"] for report in reports)
    return {
        "watchers": watchers,
        "batch": batch,
        "complete": f"{sum(report['complete'] for report in reports)}/{watchers}",
        "seconds": round(seconds, 3),
        "events_per_second": round(delivered / seconds),
        "per_session_cpu_second": round(delivered / cpu["session"]) if cpu["session"] else None,
        "session_cores": round(cpu["session"] / seconds, 2),
        "responses": sum(report["responses"] for report in reports),
    }


async def measure(counts: list[int], batches: list[int], repeat: int) -> list[dict[str, Any]]:
    """All runs, one after the other in one session process."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-fanout-"))
    try:
        async with session_alone(directory) as alone:
            rows = []
            for batch in batches:
                for watchers in counts:
                    for _ in range(repeat):
                        rows.append(await run(alone, watchers, batch))
                        print(rows[-1], file=sys.stderr, flush=True)
            return rows
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--watchers", default="1,200,1000", help="how many, with commas")
    parser.add_argument("--batches", default="1,25", help="events that an executor hands over at once")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind; the middle one counts")
    parser.add_argument("--quick", action="store_true", help="1 and 200 watchers, batches of 25, once")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        uvloop.run(client(json.loads(sys.stdin.readline())))
        return
    counts = [int(count) for count in arguments.watchers.split(",")]
    batches = [int(batch) for batch in arguments.batches.split(",")]
    repeat = arguments.repeat
    if arguments.quick:
        counts, batches, repeat = [1, 200], [25], 1
    around = machine()
    rows = uvloop.run(measure(counts, batches, repeat))
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["batch"], row["watchers"]), []).append(row)
    typical = [
        sorted(alike, key=lambda row: row["events_per_second"])[(len(alike) - 1) // 2]
        for alike in runs.values()
    ]
    text = f"{EVENTS} events of one session from one process\n{table(typical)}"
    bars = [
        (
            f"{row['watchers']} watchers, by {row['batch']}",
            {
                "events per second": row["events_per_second"],
                "per CPU second": row["per_session_cpu_second"] or 0,
            },
        )
        for row in typical
    ]
    figures = {"machine": around, "events": EVENTS, "typical": typical, "all": rows}
    write_results(arguments.output, "fanout", figures, text, chart("Fan-out", "events", bars))
    if any(row["complete"] != f"{row['watchers']}/{row['watchers']}" for row in rows):
        raise SystemExit("not every watcher saw every event once, in order")


if __name__ == "__main__":
    main()
