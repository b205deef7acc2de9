"""CreateSession and GetSession at 32 callers, beside an ordinary FastAPI application that writes the same rows.

Both servers are single processes on the same PostgreSQL, which is durable, and log every call to a file. They are
called one after the other, in turns, by a client process of their own protocol. On two cores the server has one and
PostgreSQL and the client share the other, so calls per second say little and *calls per CPU second of the server* is
the figure to compare.

Run it with `.venv/bin/python benchmarks/unary.py`; `--quick` takes 20 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
# Before gRPC is imported: its fork handlers and our child processes do not go together.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from benchmarks.measurement import RESULTS, chart, machine, open_channel, table, write_results
from benchmarks.session_alone import SessionAlone, in_a_process, line_of, session_alone
from deploy.local.ports import free_port

CALLERS = 32
GOT = 512
"""How many sessions are read in turn."""
Call = Callable[[str], Awaitable[str]]


async def drive(call: Call, keys: list[str], seconds: float) -> dict[str, Any]:
    """Lets the callers call for so long; returns how many calls were answered, how long they took, and the answers."""
    end = time.perf_counter() + seconds
    sources = itertools.cycle(keys) if keys else itertools.repeat("")
    took: list[float] = []
    answers: list[str] = []

    async def one() -> None:
        while (begun := time.perf_counter()) < end:
            answers.append(await call(next(sources)))
            took.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CALLERS)))
    return {
        "calls": len(took),
        "seconds": time.perf_counter() - begun,
        "p50_ms": statistics.median(took),
        "p99_ms": statistics.quantiles(took, n=100)[98],
        "answers": answers[-GOT:],
    }


async def client(told: dict[str, Any]) -> None:
    """A client process: calls as it is told by lines of standard input, and prints what came of it."""
    metadata = (("authorization", told["authorization"]),)
    channel = open_channel(told["target"])
    stub = SessionServiceStub(channel)
    headers = {"authorization": told["authorization"]}
    connector = aiohttp.TCPConnector(limit=CALLERS)
    async with aiohttp.ClientSession(
        f"http://{told['target']}", headers=headers, connector=connector
    ) as http:

        async def create(_: str) -> str:
            request = pb.CreateSessionRequest(name="bench", labels={"a": "b"}, request_id=uuid4().hex)
            return str((await stub.CreateSession(request, metadata=metadata)).id)

        async def get(key: str) -> str:
            return str((await stub.GetSession(pb.GetSessionRequest(session_id=key), metadata=metadata)).id)

        async def create_http(_: str) -> str:
            body = {"name": "bench", "labels": {"a": "b"}, "request_id": uuid4().hex}
            async with http.post("/sessions", json=body) as answer:
                answer.raise_for_status()
                return str((await answer.json())["id"])

        async def get_http(key: str) -> str:
            async with http.get(f"/sessions/{key}") as answer:
                answer.raise_for_status()
                return str((await answer.json())["id"])

        calls: dict[str, Call] = (
            {"create": create, "get": get}
            if told["protocol"] == "grpc"
            else {"create": create_http, "get": get_http}
        )
        keys: list[str] = []
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            done = await drive(calls[order["call"]], keys if order["call"] == "get" else [], order["seconds"])
            answers = done.pop("answers")
            if order["call"] == "create":
                keys = answers
            print(json.dumps(done), flush=True)
    await channel.close()


class Contestant:
    """A server process, and the client process that calls it."""

    def __init__(self, name: str, server: psutil.Process, caller: asyncio.subprocess.Process) -> None:
        self.name = name
        self._server = server
        self._caller = caller
        self.rounds: dict[str, list[dict[str, float]]] = {"create": [], "get": []}

    async def play(self, call: str, seconds: float, *, count: bool = True) -> None:
        """One round of one call."""
        assert self._caller.stdin is not None
        before = self._server.cpu_times()
        self._caller.stdin.write(json.dumps({"call": call, "seconds": seconds}).encode() + b"\n")
        done = await line_of(self._caller)
        after = self._server.cpu_times()
        cpu = after.user + after.system - before.user - before.system
        if count:
            figures = {
                "calls_per_second": done["calls"] / done["seconds"],
                "calls_per_cpu_second": done["calls"] / cpu,
                "server_cores": cpu / done["seconds"],
                "p50_ms": done["p50_ms"],
                "p99_ms": done["p99_ms"],
            }
            self.rounds[call].append({name: round(value, 2) for name, value in figures.items()})

    def row(self, call: str) -> dict[str, Any]:
        """The median of its rounds."""
        rounds = self.rounds[call]
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        return {"call": f"{call}, {self.name}", **medians}

    async def close(self) -> None:
        """Ends the client."""
        assert self._caller.stdin is not None
        self._caller.stdin.close()
        await self._caller.wait()


async def reference(alone: SessionAlone, directory: Path) -> tuple[asyncio.subprocess.Process, int]:
    """Starts the FastAPI application on the same database and waits until it answers."""
    port = free_port()
    told = {
        "database_url": alone.variables["AIAGENT_SESSION_DATABASE_URL"],
        "port": port,
        "jwk": dict((await alone.tokens.fetch())["keys"][0]),
        "log": str(directory / "reference.log"),
    }
    process = await in_a_process("benchmarks/fastapi_reference.py", told=told)
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return process, port


async def measure(seconds: float, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lets both play their rounds in turns; returns the rows of the table and all rounds."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-unary-"))
    try:
        async with session_alone(directory) as alone:
            served, port = await reference(alone, directory)
            contestants = []
            for name, protocol, target, server in (
                ("session service", "grpc", alone.target, alone.process),
                ("FastAPI", "http", f"127.0.0.1:{port}", psutil.Process(served.pid)),
            ):
                told = {"authorization": alone.metadata[0][1], "protocol": protocol, "target": target}
                caller = await in_a_process("benchmarks/unary.py", "--client", told=told)
                contestants.append(Contestant(name, server, caller))
            for contestant in contestants:
                for call in ("create", "get"):
                    await contestant.play(call, 1.0, count=False)
            for _ in range(rounds):
                for call in ("create", "get"):
                    for contestant in contestants:
                        await contestant.play(call, seconds)
            for contestant in contestants:
                await contestant.close()
            served.terminate()
            await served.wait()
            rows = [contestant.row(call) for call in ("create", "get") for contestant in contestants]
            for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
                ratio = ours["calls_per_cpu_second"] / theirs["calls_per_cpu_second"]
                ours["of_reference"], theirs["of_reference"] = round(ratio, 2), 1.0
            return rows, {contestant.name: contestant.rounds for contestant in contestants}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5, help="of each call and server; the median counts")
    parser.add_argument("--quick", action="store_true", help="two rounds of two seconds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        uvloop.run(client(json.loads(sys.stdin.readline())))
        return
    seconds, rounds = (2.0, 2) if arguments.quick else (arguments.seconds, arguments.rounds)
    around = machine()
    rows, played = uvloop.run(measure(seconds, rounds))
    text = f"{CALLERS} callers, {rounds} rounds of {seconds:g} s, medians\n{table(rows)}"
    bars = [
        (row["call"], {"calls per CPU second of the server": row["calls_per_cpu_second"]}) for row in rows
    ]
    figures = {"machine": around, "callers": CALLERS, "medians": rows, "rounds": played}
    write_results(arguments.output, "unary", figures, text, chart("Unary calls", "calls", bars))


if __name__ == "__main__":
    main()
