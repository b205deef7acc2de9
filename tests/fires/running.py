"""A run of the harness: schedules that each fire once, processes that are killed meanwhile, and what came of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aiagent.events.v1 import task_run_fact_pb2
from benchmarks.measurement import percentile
from services.kernel.db import Database
from services.kernel.ids import Uuid7Source
from services.kernel.testing import a_caller
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.schedules import ScheduleContent, Timing
from services.scheduler.gateways.rendering import TemplateProcesses
from services.scheduler.store.tables import outbox, run_attempts, runs
from services.scheduler.store.tenant import TenantStore
from services.scheduler.usecases.schedules import Schedules
from services.scheduler.usecases.tasks import Tasks
from tests.integration.scheduler.working import KEEPER, content

from .floor import Crew, Floor, floor

_SETTLE_SECONDS = 120.0
_ORGANIZATIONS = 10
_AHEAD_SECONDS = 5


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        seed: Of everything that is drawn.
        schedules: How many; each fires once.
        seconds: Within how long.
        pace: Seconds between two kills, on average; 0 for none.
        longest_turn_seconds: Of the played agents.
    """

    seed: int
    schedules: int = 1000
    seconds: float = 60.0
    pace: float = 2.0
    longest_turn_seconds: float = 1.0
    crew: Crew = field(default_factory=Crew)


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        violations: Every promise that was not kept, in words.
        figures: What was counted and measured.
    """

    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


async def run(plan: Plan) -> Outcome:
    """Does it, in a directory that is kept if a promise was not."""
    folder = Path(tempfile.mkdtemp(prefix="aiagent-fires-"))
    chance = random.Random(plan.seed)  # not for secrets
    async with floor(folder, plan.crew, chance, plan.longest_turn_seconds) as up:
        first = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3 + plan.schedules / 150)
        made, last = await _make(up.database, plan, first, chance)
        kills = await _strike(up, plan, chance, last) if plan.pace else {}
        await asyncio.sleep(max(0.0, (last - datetime.now(UTC)).total_seconds()))
        settled = await _settle(up.database, plan.schedules)
        outcome = await check(up, made)
        outcome.figures |= {"kills": sum(kills.values()), "killed": kills, "settled_seconds": settled}
    if not outcome.violations:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.figures["folder"] = str(folder)
    return outcome


async def _make(
    database: Database, plan: Plan, first: datetime, chance: random.Random
) -> tuple[dict[UUID, str], datetime]:
    """Makes the schedules; returns the prompt of each, and when the last of them fires."""
    store, renderer = TenantStore(database), TemplateProcesses()
    tasks, schedules = (
        Tasks(store, Uuid7Source(), renderer, KEEPER),
        Schedules(store, Uuid7Source(), renderer),
    )
    owners = [a_caller() for _ in range(_ORGANIZATIONS)]
    made: dict[UUID, str] = {}
    last = first

    async def one(number: int) -> None:
        nonlocal last
        owner, prompt = owners[number % _ORGANIZATIONS], f"work {number}"
        task = await tasks.create(
            owner, content(prompt_template=prompt, run_timeout=timedelta(minutes=10)), ""
        )
        fire = first + timedelta(milliseconds=round(chance.uniform(0, plan.seconds) * 1000))
        # A loaded machine makes the last ones when others fire already.
        fire = max(fire, datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=_AHEAD_SECONDS))
        last = max(last, fire)
        asked = ScheduleContent(
            name="",
            timing=Timing(interval=timedelta(days=1), anchor=fire, start_time=fire, end_time=fire),
            variables={},
            overlap_policy=OverlapPolicy.SKIP,
            catch_up_window=timedelta(days=1),
            pause_on_failure=False,
            remaining_runs=None,
        )
        schedule = await schedules.create(owner, task.id, asked, "")
        made[schedule.id] = prompt

    for begin in range(0, plan.schedules, 8):
        await asyncio.gather(*map(one, range(begin, min(begin + 8, plan.schedules))))
    await renderer.close()
    return made, last


async def _strike(up: Floor, plan: Plan, chance: random.Random, until: datetime) -> dict[str, int]:
    """Kills processes until all schedules have fired; each is started again by whoever keeps it."""
    kills: dict[str, int] = {}
    names = [*up.processes, "broker"]
    while True:
        pause = chance.expovariate(1 / plan.pace)
        if datetime.now(UTC) + timedelta(seconds=pause) > until:
            return kills
        await asyncio.sleep(pause)
        name = chance.choice(names)
        pid = _broker_pid(up, plan.crew) if name == "broker" else up.processes[name].pid
        if pid is None:
            continue
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            kind = name.partition("-")[0]
            kills[kind] = kills.get(kind, 0) + 1


def _broker_pid(up: Floor, crew: Crew) -> int | None:
    if up.broker is not None:
        return up.broker.pid
    return int(crew.broker_pid.read_text()) if crew.broker_pid is not None else None


async def _settle(database: Database, number: int) -> float:
    """Waits until as many runs as that are over, or for so long that they will not be; returns how long that took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    query = sa.select(sa.func.count()).select_from(runs).where(runs.c.end_time.is_not(None))
    while loop.time() - begun < _SETTLE_SECONDS:
        async with database.system() as connection:
            if (await connection.execute(query)).scalar_one() >= number:
                break
        await asyncio.sleep(0.1)
    return round(loop.time() - begun, 2)


async def check(up: Floor, made: dict[UUID, str]) -> Outcome:
    """Compares what is recorded, and what the session service was asked, with what was to be."""
    outcome = Outcome()
    async with up.database.system() as connection:
        rows = (await connection.execute(sa.select(runs))).all()
        attempts = (await connection.execute(sa.select(run_attempts))).all()
        facts = [
            task_run_fact_pb2.TaskRunFact.FromString(payload)
            for payload in (await connection.execute(sa.select(outbox.c.payload))).scalars()
        ]

    def promise(holds: bool, otherwise: str) -> None:
        if not holds:
            outcome.violations.append(otherwise)

    of_schedule: dict[UUID, int] = {}
    for row in rows:
        of_schedule[row.schedule_id] = of_schedule.get(row.schedule_id, 0) + 1
        promise(row.state == "SUCCEEDED", f"run {row.id} is {row.state}: {row.failure_reason}")
    for schedule_id in made:
        count = of_schedule.get(schedule_id, 0)
        promise(count == 1, f"schedule {schedule_id} made {count} runs")
    promise(len(rows) == len(made), f"{len(rows)} runs of {len(made)} fires")
    promise(len(attempts) == len(rows), f"{len(attempts)} attempts at {len(rows)} runs")
    prompts = up.sessions.fake.prompts
    for prompt in set(made.values()):
        count = prompts.count(prompt)
        promise(count == 1, f"the prompt {prompt!r} was sent {count} times")
    sessions = len(up.sessions.fake.sessions)
    promise(sessions == len(rows), f"{sessions} sessions for {len(rows)} runs")
    ended: dict[str, int] = {}
    for fact in facts:
        if fact.HasField("run_ended"):
            ended[fact.run_ended.task_run_id] = ended.get(fact.run_ended.task_run_id, 0) + 1
    for row in rows:
        count = ended.get(str(row.id), 0)
        promise(count == 1, f"the end of run {row.id} was recorded {count} times")
    late = [(row.start_time - row.due_time).total_seconds() * 1000 for row in rows if row.start_time]
    taken_over = sum(row.epoch > 1 for row in rows)
    outcome.figures |= {"runs": len(rows), "taken_over": taken_over}
    if late:
        outcome.figures |= {
            f"late_ms_{name}": round(value, 1)
            for name, value in (
                ("p50", percentile(late, 50)),
                ("p99", percentile(late, 99)),
                ("max", max(late)),
            )
        }
    return outcome
