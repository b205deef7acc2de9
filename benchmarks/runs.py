"""No-op runs through one worker process, each recorded durably, beside no-op tasks of Celery, with nothing durable.

The runs lie in PostgreSQL, which is durable as the suite's is, when the worker starts: `benchmarks/run_worker.py`. Each
is claimed under a lease, gets a session and a turn (played, they answer at once), and ends with its outcome and the
fact that tells of it. The rate is that from the first claim to the last end, by the database's clock.

Celery comes from its package into an environment of its own, with Valkey as the broker and results ignored: with two
processes, and with one that works by itself. Its rate is that from the first task taken to the last one done.

Run it with `.venv/bin/python benchmarks/runs.py`; `--quick` takes half a minute. `--without-celery` needs no registry.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import uvloop
from redis.asyncio import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measurement import RESULTS, CpuMeter, chart, machine, table, write_results
from benchmarks.session_alone import ROOT, in_a_process, line_of
from deploy.local.postgres import Postgres
from deploy.local.servers import Valkey
from deploy.local.state import StateDirectory
from services.kernel.db.migrations import upgrade
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.store.rows import retry_policy_column

ORGANIZATIONS = 10
MOST_SECONDS = 120
CELERY = "celery[redis]>=5.5,<6"
_TASK = """
    INSERT INTO scheduler.tasks (id, organization_id, user_id, name, prompt_template, variables, sdk_options, labels,
        priority, run_timeout, retry_policy, max_concurrent_runs, run_budget_usd)
    VALUES ($1, $2, $3, 'bench', 'Do nothing.', '[]', '{}', '{}', 0, interval '1 hour', '{}', 0, 0)
"""
_RUNS = """
    INSERT INTO scheduler.runs (id, organization_id, user_id, task_id, due_time, state, priority, name, prompt,
        variables, sdk_options, labels, run_timeout, retry_policy, run_budget_usd, available_time)
    SELECT uuidv7(), $2, $3, $1, clock_timestamp(), 'QUEUED', 0, 'bench', 'Do nothing.', '{}', '{}', '{}',
        interval '1 hour', $5, 0, clock_timestamp()
    FROM generate_series(1, $4)
"""
_LEFT = "SELECT count(*) FROM scheduler.runs WHERE end_time IS NULL"
_DONE = """
    SELECT count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
        extract(epoch FROM max(end_time) - min(start_time))::float AS seconds,
        (SELECT count(*) FROM scheduler.run_attempts WHERE state = 'SUCCEEDED' AND turn_id IS NOT NULL) AS attempts,
        (SELECT count(*) FROM scheduler.outbox) AS facts
    FROM scheduler.runs
"""
_CELERY_APPLICATION = """
import os
from celery import Celery
app = Celery("noop", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True

@app.task(name="noop")
def noop():
    pass
"""
_CELERY_SENDER = """
import sys
from application import noop
for _ in range(int(sys.argv[1])):
    noop.delay()
"""


async def through_our_worker(postgres: Postgres, log: Path, runs: int, places: int) -> dict[str, Any]:
    """Lets one worker process carry so many runs; returns the figures."""
    connection = await postgres.connect()
    try:
        await connection.execute("TRUNCATE scheduler.tasks, scheduler.outbox CASCADE")
        policy = json.dumps(retry_policy_column(RetryPolicy()))
        for number in range(ORGANIZATIONS):
            task: tuple[UUID, ...] = (uuid4(), uuid4(), uuid4())
            await connection.execute(_TASK, *task)
            share = runs // ORGANIZATIONS + (number < runs % ORGANIZATIONS)
            await connection.execute(_RUNS, *task, share, policy)
        await connection.execute("VACUUM ANALYZE scheduler.runs")
        told = {
            "application_url": postgres.url("scheduler_application"),
            "system_url": postgres.url("scheduler_system"),
            "places": places,
            "log": str(log),
        }
        process = await in_a_process("benchmarks/run_worker.py", told=told)
        worker = psutil.Process((await line_of(process))["pid"])
        meter = CpuMeter({"worker": [worker]})
        meter.start()
        before = _cpu_seconds_beside(worker)
        async with asyncio.timeout(MOST_SECONDS):
            while await connection.fetchval(_LEFT):
                await asyncio.sleep(0.2)
        cpu = meter.stop()
        # With those that have been started for the worker's connections.
        beside = _cpu_seconds_beside(worker) - before
        memory = worker.memory_full_info().pss
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        done = await connection.fetchrow(_DONE)
    finally:
        await connection.close()
    if (done["succeeded"], done["attempts"], done["facts"]) != (runs, runs, runs):
        raise RuntimeError(f"not what it should be: {dict(done)}")
    return {
        "what": f"runs, one worker, {places} places",
        "per_second": round(runs / done["seconds"], 1),
        "cpu_ms_each": round(cpu["worker"] / runs * 1000, 3),
        "database_cpu_ms_each": round(beside / runs * 1000, 3),
        "memory_mib": round(memory / 2**20, 1),
    }


def _cpu_seconds_beside(worker: psutil.Process) -> float:
    """CPU time of all servers that this process has started, and has not ended."""
    spent = 0.0
    for child in psutil.Process().children(recursive=True):
        if child.pid != worker.pid:
            times = child.cpu_times()
            spent += times.user + times.system
    return spent


async def through_celery(
    python: Path, directory: Path, broker: str, tasks: int, pool: Sequence[str]
) -> dict[str, Any]:
    """Lets one Celery worker carry so many tasks; returns the figures."""
    environment = {**os.environ, "BROKER": broker}
    sender = await asyncio.create_subprocess_exec(
        python, "-c", _CELERY_SENDER, str(tasks), cwd=directory, env=environment
    )
    if await sender.wait():
        raise RuntimeError("the tasks could not be sent")
    async with Redis.from_url(broker) as redis:

        async def left() -> int:
            return int(await redis.llen("celery")) + int(await redis.hlen("unacked"))

        with (directory / "celery.log").open("ab") as log:
            options = ["--loglevel", "INFO", "--without-gossip", "--without-mingle", *pool]
            process = await asyncio.create_subprocess_exec(
                python, "-m", "celery", "-A", "application", "worker", *options,
                cwd=directory, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while await left() == tasks:
                    await asyncio.sleep(0.005)
                begun = time.perf_counter()
                first = psutil.Process(process.pid)
                family = [first, *first.children(recursive=True)]
                meter = CpuMeter({"worker": family})
                meter.start()
                while await left():
                    await asyncio.sleep(0.02)
                seconds = time.perf_counter() - begun
            cpu = meter.stop()
            memory = sum(member.memory_full_info().pss for member in family if member.is_running())
        finally:
            process.terminate()
            await process.wait()
    return {
        "what": f"Celery, {' '.join(pool)}",
        "per_second": round(tasks / seconds, 1),
        "cpu_ms_each": round(cpu["worker"] / tasks * 1000, 3),
        "memory_mib": round(memory / 2**20, 1),
    }


def celery_environment(directory: Path) -> Path:
    """Installs Celery into an environment of its own; returns its Python."""
    uv = str(Path(sys.executable).with_name("uv"))
    environment = directory / "environment"
    python = environment / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), CELERY], check=True)
    (directory / "application.py").write_text(_CELERY_APPLICATION, encoding="utf-8")
    return python


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Plays all rounds; returns the figures of each."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-runs-"))
    played = []
    try:
        async with AsyncExitStack() as stack:
            python = None if arguments.without_celery else celery_environment(directory)
            state = StateDirectory(directory / "state")
            state.open()
            postgres, valkey = Postgres(state, state.secrets()), Valkey(state, state.secrets())
            for server in (postgres, valkey):
                stack.push_async_callback(server.stop)
                await server.start()
            await postgres.provision()
            await upgrade(
                postgres.url("scheduler_owner"), "scheduler", ROOT / "services/scheduler/migrations"
            )
            for _ in range(arguments.rounds):
                for places in arguments.places:
                    log = directory / "worker.log"
                    played.append(await through_our_worker(postgres, log, arguments.runs, places))
                for pool in (["--concurrency", "2"], ["--pool", "solo"]) if python else ():
                    figures = await through_celery(python, directory, valkey.url, arguments.runs, pool)
                    played.append(figures)
        return played
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=6000, help="of each round")
    parser.add_argument("--places", type=int, nargs="+", default=[20, 100], help="runs at once in the worker")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--quick", action="store_true", help="one round of 2,000")
    parser.add_argument("--without-celery", action="store_true", help="only our worker")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.rounds = 2000, 1
    around = machine()
    played = uvloop.run(measure(arguments))
    rows = []
    for what in dict.fromkeys(figures["what"] for figures in played):
        rounds = [figures for figures in played if figures["what"] == what]
        names = [name for name in played[0] if name != "what"]
        medians = {
            name: round(statistics.median(figures[name] for figures in rounds), 3)
            if name in rounds[0]
            else None
            for name in names
        }
        rows.append({"what": what, **medians})
    text = (
        f"{arguments.runs} no-op runs, {arguments.rounds} rounds, medians\n"
        f"{around['system']}, {around['cores']} cores, load {around['load_average']}, {around['time']}\n{table(rows)}"
    )
    bars = [(row["what"], {"per second": row["per_second"]}) for row in rows]
    figures = {"machine": around, "runs": arguments.runs, "medians": rows, "rounds": played}
    write_results(arguments.output, "runs", figures, text, chart("No-op runs", "per second", bars))


if __name__ == "__main__":
    main()
