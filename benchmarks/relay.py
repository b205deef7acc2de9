"""What the relay of a token costs, from the model to whoever watches, beside the Claude Agent SDK in process.

Every token carries the monotonic clock's time of its sending by the offline model; on one machine that clock is one,
so whoever reads the token knows how long it took. Each way is measured with the same model, CLI, text and pace:

* floor: the SDK in this process reads its own CLIs;
* direct: `WatchSession` by gRPC on a session replica's own port;
* envoy: the same through the public port; web: as gRPC-Web.

Messages are sent to the first replica, which then drives; watchers are told apart by whether they watch there or on
the other replica. The first second of each stream is left out: it holds the start of all turns at once.

Run it with `.venv/bin/python benchmarks/relay.py`; `--quick` takes half a minute. 60 CLIs need about 12 GiB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
# Before gRPC is imported: its fork handlers and our child processes do not go together.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from benchmarks.measurement import (
    RESULTS,
    CpuMeter,
    Metadata,
    chart,
    machine,
    open_channel,
    percentile,
    sign_up,
    table,
    write_results,
)
from benchmarks.sdk_floor import Floor
from benchmarks.stamped_tokens import (
    TOKENS_PER_SECOND,
    WARM_UP_TOKENS,
    Sample,
    Stream,
    cpu_per_1000_tokens,
    in_twos,
    speech,
)
from tests.running_suite import RunningSuite

SILENCE_SECONDS = 60.0
REQUEST_ID = "x-request-id"
_WATCH = "/aiagent.session.v1.SessionService/WatchSession"


class Relay:
    """The suite with two replicas of everything, and sessions whose CLIs are warm."""

    def __init__(self, directory: Path, count: int) -> None:
        self.suite = RunningSuite(
            directory / "state",
            arguments=["--processes", "--replicas", "session=2,executor=2"],
            environment={"AIAGENT_EXECUTOR_MAX_LIVE_CLIENTS": str(count + 2)},
        )
        self._count = count
        self._sessions: list[str] = []
        self._metadata: Metadata = ()
        self._stubs: dict[str, Any] = {}
        self._channels: list[Any] = []
        self._first_holder = ""

    async def start(self) -> None:
        """Starts the suite, makes the sessions and lets each agent answer once."""
        await self.suite.start()
        note = json.loads((self.suite.state_dir / "run" / "suite.json").read_text(encoding="utf-8"))
        targets = {
            "session-1": note["replicas"]["session-1"],
            "session-2": note["replicas"]["session-2"],
            "envoy": note["public"],
        }
        for name, target in targets.items():
            channel = open_channel(target)
            self._channels.append(channel)
            self._stubs[name] = SessionServiceStub(channel)
        self._metadata = await sign_up(self._channels[-1])
        for number in range(self._count):
            made = await self._call("envoy", "CreateSession", pb.CreateSessionRequest(name=f"relay {number}"))
            self._sessions.append(made.id)
        await in_twos([self._first_turn(session_id) for session_id in self._sessions])
        await self._learn_holder()

    async def _learn_holder(self) -> None:
        """Learns what the first replica is called in leases: who takes a session while the other one stands still."""
        (other,) = self._replica(2)
        # One that stands still in a transaction would hold its session up.
        while any((await self._holders(self._sessions)).values()):
            await asyncio.sleep(0.05)
        other.suspend()
        try:
            await self._send(self._sessions[0], TOKENS_PER_SECOND)
            await asyncio.sleep(0.5)
            self._first_holder = (await self._holders(self._sessions[:1]))[self._sessions[0]]
            await asyncio.sleep(1.0)
        finally:
            other.resume()
        await asyncio.sleep(1.0)

    async def _call(self, stub: str, method: str, request: Any) -> Any:
        return await getattr(self._stubs[stub], method)(request, metadata=self._metadata, timeout=90)

    async def _first_turn(self, session_id: str) -> None:
        request = pb.QuerySessionRequest(session_id=session_id, message=speech(2), wait_seconds=60)
        await self._call("session-1", "QuerySession", request)

    async def _follow(self, responses: AsyncIterator[pb.WatchSessionResponse], stream: Stream) -> None:
        async with asyncio.timeout(None) as limit:
            loop = asyncio.get_running_loop()
            async for response in responses:
                limit.reschedule(loop.time() + SILENCE_SECONDS)
                for item in response.items:
                    if item.HasField("delta"):
                        stream.take(item.delta.text)
                    elif item.event.payload.HasField("turn_ended"):
                        return

    async def _by_grpc(self, stub: str, request: pb.WatchSessionRequest, stream: Stream) -> None:
        call = self._stubs[stub].WatchSession(request, metadata=self._metadata)
        await self._follow(call, stream)
        stream.request_id = dict(await call.initial_metadata()).get(REQUEST_ID, "")
        call.cancel()

    async def _by_web(self, request: pb.WatchSessionRequest, stream: Stream) -> None:
        headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **dict(self._metadata)}
        body = request.SerializeToString()
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(
                f"{self.suite.base_url}{_WATCH}",
                data=b"\0" + len(body).to_bytes(4, "big") + body,
                headers=headers,
            ) as answered,
        ):
            await self._follow(web_frames(answered.content.iter_any()), stream)
            stream.request_id = answered.headers.get(REQUEST_ID, "")

    async def measure(self, way: str, streams: int, tokens: int) -> list[Sample]:
        """Lets so many agents speak at once and watches all of them one way; a sample for each place."""
        sessions = self._sessions[:streams]
        seen = {session_id: Stream() for session_id in sessions}
        meter = CpuMeter(self._processes())
        async with asyncio.TaskGroup() as group:
            for session_id in sessions:
                known = await self._call("envoy", "GetSession", pb.GetSessionRequest(session_id=session_id))
                request = pb.WatchSessionRequest(session_id=session_id)
                request.cursor.sequence = known.last_sequence
                watch = (
                    self._by_web(request, seen[session_id])
                    if way == "web"
                    else self._by_grpc(way, request, seen[session_id])
                )
                group.create_task(watch)
            await asyncio.sleep(0.5)
            meter.start()
            await asyncio.gather(*(self._send(session_id, tokens) for session_id in sessions))
            await asyncio.sleep(1.0)
            holders = await self._holders(sessions)
        cpu = cpu_per_1000_tokens(meter, streams * tokens)
        places: dict[str, list[float]] = defaultdict(list)
        served = self._served_by([stream.request_id for stream in seen.values()])
        for session_id, stream in seen.items():
            driver = "session-1" if holders[session_id] == self._first_holder else "session-2"
            watched = served.get(stream.request_id, way)
            places["driving" if watched == driver else "other"] += stream.milliseconds[WARM_UP_TOKENS:]
        name = "direct" if way.startswith("session") else way
        return [Sample(name, place, streams, values, cpu) for place, values in places.items()]

    async def _send(self, session_id: str, tokens: int) -> None:
        message = speech(tokens)
        await self._call(
            "session-1", "SendMessage", pb.SendMessageRequest(session_id=session_id, message=message)
        )

    def _replica(self, number: int, service: str = "session") -> list[psutil.Process]:
        note = self.suite.state_dir / "run" / f"{service}-{number}.pid"
        return [psutil.Process(int(note.read_text(encoding="utf-8").split()[0]))]

    def _processes(self) -> dict[str, list[psutil.Process]]:
        everything = self.suite.processes()
        groups = {
            service: [*self._replica(1, service), *self._replica(2, service)]
            for service in ("session", "executor")
        }
        for server in ("envoy", "valkey", "postgres"):
            groups[server] = [process for process in everything if server in process.name().lower()]
        return {**groups, "all": everything}

    async def _holders(self, sessions: Sequence[str]) -> dict[str, str]:
        """Who drives each session, by the name it has in leases: only the database knows."""
        lines = (self.suite.state_dir / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
        secrets = json.loads((self.suite.state_dir / "secrets.json").read_text(encoding="utf-8"))
        connection = await asyncpg.connect(  # type: ignore[no-untyped-call]  # as everywhere
            host="127.0.0.1",
            port=int(lines[3]),
            user="session_system",
            password=secrets["database_roles"]["session_system"],
            database="aiagent",
            ssl=False,
        )
        try:
            rows = await connection.fetch(
                "SELECT session_id::text, lease_holder FROM session.session_heads"
                " WHERE session_id = ANY($1::text[]::uuid[])",
                list(sessions),
            )
        finally:
            await connection.close()
        return {row["session_id"]: row["lease_holder"] or "" for row in rows}

    def _served_by(self, request_ids: Sequence[str]) -> dict[str, str]:
        """Which replica served each call, by the replicas' own logs: Envoy does not tell."""
        wanted = set(request_ids)
        served: dict[str, str] = {}
        deadline = time.monotonic() + 5
        while wanted - served.keys() and time.monotonic() < deadline:
            for name in ("session-1", "session-2"):
                with (self.suite.state_dir / "logs" / f"{name}.log").open(encoding="utf-8") as log:
                    for line in log:
                        if _WATCH in line:
                            request_id = json.loads(line).get("request_id", "")
                            if request_id in wanted:
                                served[request_id] = name
            time.sleep(0.05)
        return served

    async def stop(self) -> None:
        """Stops the suite."""
        for channel in self._channels:
            await channel.close()
        await self.suite.stop()


async def web_frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[pb.WatchSessionResponse]:
    """Reads the frames of a gRPC-Web answer: a flag, four bytes of length, a message; flag 0x80 marks the trailers."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= (size := 5 + int.from_bytes(buffer[1:5], "big")):
            frame, flag = bytes(buffer[5:size]), buffer[0]
            del buffer[:size]
            if flag & 0x80:
                return
            yield pb.WatchSessionResponse.FromString(frame)


async def measure(
    counts: Sequence[int], tokens: int, repeat: int, report: Callable[[str], None]
) -> list[Sample]:
    """Runs everything, each with its CLIs warm: the floor before the suite and after it."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-relay-"))
    samples: list[Sample] = []
    most = max(counts)
    try:
        for number, kind in enumerate((Floor, Relay, Floor)):
            own = directory / str(number)
            own.mkdir()
            running = kind(own, most)
            report(f"starting {most} CLIs for the {kind.__name__.lower()}")
            try:
                await running.start()
                gc.collect()
                for count in counts:
                    for _ in range(repeat):
                        if isinstance(running, Floor):
                            samples.append(await running.measure(count, tokens))
                        else:
                            for way in ("session-1", "session-2", "envoy", "envoy", "web", "web"):
                                samples += await running.measure(way, count, tokens)
                                report(str(samples[-1].row()))
            finally:
                await running.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return samples


def typical(samples: Sequence[Sample]) -> list[Sample]:
    """Of each way, place and number of streams the run whose median is in the middle of all runs' medians."""
    runs: dict[tuple[int, str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        runs[(sample.streams, sample.way, sample.place)].append(sample)
    middle = [
        sorted(alike, key=lambda sample: percentile(sample.milliseconds, 50))[(len(alike) - 1) // 2]
        for alike in runs.values()
    ]
    order = {"floor": 0, "direct": 1, "envoy": 2, "web": 3}
    return sorted(middle, key=lambda sample: (sample.streams, order[sample.way], sample.place))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", default="1,20,60", help="how many at once, with commas")
    parser.add_argument("--tokens", type=int, default=300, help="of each stream, 50 a second")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind; the middle one counts")
    parser.add_argument("--quick", action="store_true", help="1 and 4 streams, 120 tokens, once")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.streams.split(",")]
    tokens, repeat = arguments.tokens, arguments.repeat
    if arguments.quick:
        counts, tokens, repeat = [1, 4], 120, 1
    around = machine()
    samples = uvloop.run(
        measure(counts, tokens, repeat, lambda text: print(text, file=sys.stderr, flush=True))
    )
    rows = [sample.row() for sample in typical(samples)]
    floors = {row["streams"]: row for row in rows if row["way"].startswith("floor")}
    for row in rows:
        row["p50_over"] = round(row["p50_ms"] - floors[row["streams"]]["p50_ms"], 3)
        row["p99_over"] = round(row["p99_ms"] - floors[row["streams"]]["p99_ms"], 3)
    bars = [
        (f"{row['streams']} × {row['way']}", {name: row[f"{name}_ms"] for name in ("p50", "p90", "p99")})
        for row in rows
    ]
    shown = [
        {
            "way": row["way"],
            **{name: row[name] for name in ("streams", "p50_ms", "p90_ms", "p99_ms", "p50_over", "p99_over")},
            "session": row.get("cpu_session"),
            "executor": row.get("cpu_executor", row.get("cpu_service")),
            "everything": row["cpu_all"],
        }
        for row in rows
    ]
    text = (
        f"Relay of a token, {TOKENS_PER_SECOND} a second in each stream; CPU in ms for 1,000 tokens\n"
        f"{table(shown)}"
    )
    figures = {
        "machine": around,
        "tokens_per_second": TOKENS_PER_SECOND,
        "typical": rows,
        "all": [sample.row() for sample in samples],
    }
    write_results(arguments.output, "relay", figures, text, chart("Relay of a token", "ms", bars))


if __name__ == "__main__":
    main()
