"""How late schedules fire, and what a tick costs that finds nothing to do.

1. Lateness, from the time at which a fire is due to the moment at which a worker has its run, both by PostgreSQL's
   clock: real processes, workers idle, the local broker between them; once with a worker in the process that fires, as
   `make run` has it, and once with a worker as a process of its own, which hears of the run through the broker. Agents
   are played.
2. A tick over a table of many schedules of which none is due: look, backfills, time to the next.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvloop

from benchmarks.measurement import RESULTS, chart, machine, percentile, table, write_results
from deploy.local.postgres import Postgres
from deploy.local.state import StateDirectory
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.db.migrations import upgrade
from services.kernel.ids import Uuid7Source
from services.kernel.telemetry import configure_logging
from services.kernel.testing import a_caller
from services.scheduler.store.system_queries import FireQueries
from services.scheduler.store.tables import SCHEMA, schedules, tasks
from services.scheduler.usecases.firing import Backfiller, Ticker
from tests.fires.floor import Crew
from tests.fires.running import Plan, run
from tests.integration.scheduler.ticking import clockwork

ROOT = Path(__file__).parents[1]
_CREWS = {
    "worker in the process that fires": Crew(schedulers=1, workers=0, embedded=True),
    "worker as a process of its own": Crew(schedulers=1, workers=1),
}
_TICKS = 200


async def lateness(number: int) -> list[dict[str, Any]]:
    """Lets `number` schedules fire, ten a second, in each arrangement."""
    rows = []
    for name, crew in _CREWS.items():
        outcome = await run(Plan(1, number, number / 10, pace=0, longest_turn_seconds=0.05, crew=crew))
        if outcome.violations:
            raise SystemExit(f"not every fire made its run: {outcome.violations[:3]}")
        figures = outcome.figures
        rows.append(
            {
                "arrangement": name,
                "fires": figures["runs"],
                **{key: figures[f"late_ms_{key}"] for key in ("p50", "p99", "max")},
            }
        )
    return rows


async def idle(number: int) -> dict[str, Any]:
    """Times ticks over `number` schedules, all due within the next day and none yet."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-bench-"))
    state = StateDirectory(directory)
    state.open()
    postgres = Postgres(state, state.secrets())
    try:
        await postgres.start()
        await postgres.provision()
        await upgrade(postgres.url("scheduler_owner"), SCHEMA, ROOT / "services" / SCHEMA / "migrations")
        database = Database(postgres.url("scheduler_application"), postgres.url("scheduler_system"))
        async with clockwork(database) as works:
            kept = await works.schedule(a_caller())
            await _multiply(database, number)
            await works.change(kept.id, next_due_time=works.now + timedelta(hours=1))
        queries, ids, clock = FireQueries(database), Uuid7Source(), SystemClock()
        ticker, backfiller = Ticker(queries, ids, clock), Backfiller(queries, ids, clock)
        spent = []
        for _ in range(_TICKS):
            begun = time.perf_counter()
            if await ticker.tick() or await backfiller.fill():
                raise SystemExit("something was due")
            await queries.seconds_to_fire([])
            await queries.seconds_to_backfill([])
            spent.append((time.perf_counter() - begun) * 1000)
        await database.close()
    finally:
        await postgres.stop()
    return {
        "schedules": number,
        "tick_ms_p50": round(percentile(spent, 50), 2),
        "tick_ms_p99": round(percentile(spent, 99), 2),
    }


async def _multiply(database: Database, number: int) -> None:
    """Copies the one schedule that is there, each due at another time of the day to come."""
    names = [
        column.name for column in schedules.c if column.name not in {"id", "next_due_time", "next_fire_time"}
    ]
    copied = ", ".join(f'"{name}"' for name in names)
    async with database.system() as connection:
        await connection.execute(
            sa.text(
                f"INSERT INTO scheduler.schedules (id, next_due_time, next_fire_time, {copied})"
                f" SELECT gen_random_uuid(), due, due, {copied} FROM scheduler.schedules,"
                " LATERAL (SELECT clock_timestamp() + interval '1 minute' + n * interval '0.8 s' AS due"
                "          FROM generate_series(1, :number) AS n) AS times"
            ),
            {"number": number - 1},
        )
        found = (
            await connection.execute(sa.select(sa.func.count()).select_from(schedules.join(tasks)))
        ).scalar_one()
        if found != number:
            raise SystemExit(f"{found} schedules instead of {number}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fires", type=int, default=300, help="of each arrangement")
    parser.add_argument("--schedules", type=int, default=100_000, help="in the table of the idle tick")
    parser.add_argument("--quick", action="store_true", help="fewer of both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    fires, number = (50, 10_000) if arguments.quick else (arguments.fires, arguments.schedules)
    configure_logging("CRITICAL")
    around = machine()
    nothing = uvloop.run(idle(number))
    late = asyncio.run(lateness(fires))
    text = (
        f"milliseconds from due to running\n{table(late)}\n\nticks that find nothing due\n{table([nothing])}"
    )
    bars = [(row["arrangement"], {"p50": row["p50"], "p99": row["p99"]}) for row in late]
    figures = {"machine": around, "lateness_ms": late, "idle": nothing}
    write_results(arguments.output, "fires", figures, text, chart("Lateness of a fire", "ms", bars))


if __name__ == "__main__":
    main()
