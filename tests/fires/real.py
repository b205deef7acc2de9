"""`python -m tests.fires.real`: scheduled runs by the real agent, while the processes that carry them are killed.

The whole suite in processes, with the offline model. Schedules of one user fire within a few seconds; scheduler
processes, those that carry runs among them, are killed at random. Judged from outside, by what the public port tells:
each fire has one run, which succeeded at its first attempt, in one session, to which its prompt was sent once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from aiagent.session.v1 import session_pb2
from aiagent.session.v1 import session_service_pb2 as sessions_pb
from tests.e2e.conftest import OPTIONS, User
from tests.e2e.script import prompt, say, use
from tests.running_suite import RunningSuite

_SETTLE_SECONDS = 300.0
_FINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "SKIPPED")


async def prove(number: int, pace: float, chance: random.Random) -> list[str]:
    """Lets `number` schedules fire; returns what was not as it should be."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-fires-"))
    suite = RunningSuite(directory / "state", arguments=["--processes"])
    await suite.start()
    try:
        async with grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS) as channel:
            user = User(suite.base_url, channel)
            await user.sign_up()
            async with user.http() as http:
                made = await _make(http, number)
                over = asyncio.Event()
                striking = asyncio.create_task(_strike(suite, pace, chance, over))
                runs = await _ended(http, number)
                over.set()
                print(f"{len(runs)} runs ended; {await striking} scheduler processes were killed")
                return await _complaints(user, http, made, runs)
    finally:
        await suite.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _make(http: httpx.AsyncClient, number: int) -> dict[str, str]:
    """Makes the schedules, each of a task of its own; returns their prompts by their ids."""
    made = {}
    first = datetime.now(UTC) + timedelta(seconds=5 + number / 20)
    for index in range(number):
        text = prompt(use("Bash", command=f"sleep 0.3; echo {index} > seen"), say(f"done {index}"))
        task = await _post(
            http,
            "/api/v1/tasks",
            {
                "name": f"task {index}",
                "prompt_template": "{{ script }}",
                "variables": [{"name": "script"}],
                "sdk_options": {"permission_mode": "BYPASS_PERMISSIONS"},
            },
        )
        fire = (first + timedelta(seconds=index / 5)).isoformat()
        spec = {"interval": "86400s", "anchor": fire, "start_time": fire, "end_time": fire}
        body = {"task_id": task["id"], "spec": spec, "variables": {"script": text}}
        made[(await _post(http, "/api/v1/schedules", body))["id"]] = text
    return made


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _schedulers(suite: RunningSuite) -> Iterator[psutil.Process]:
    """The suite's scheduler processes, whatever they do."""
    if suite.process is None:
        raise AssertionError("the suite runs")
    for process in psutil.Process(suite.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "services.scheduler" in process.cmdline():
                yield process


async def _strike(suite: RunningSuite, pace: float, chance: random.Random, over: asyncio.Event) -> int:
    """Kills until it is over; returns how many."""
    kills = 0
    while not over.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.expovariate(1 / pace)):
                await over.wait()
        found = list(_schedulers(suite))
        if found and not over.is_set():
            with suppress(psutil.Error):
                chance.choice(found).kill()
                kills += 1
    return kills


async def _ended(http: httpx.AsyncClient, number: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(_SETTLE_SECONDS):
        while True:
            # The scheduler may be on its way back.
            with suppress(httpx.HTTPError):
                answer = await http.get("/api/v1/task-runs", params={"page_size": 1000})
                runs = answer.json().get("task_runs", []) if answer.status_code == 200 else []
                if len(runs) >= number and all(run["state"] in _FINAL for run in runs):
                    return list(runs)
            await asyncio.sleep(0.5)


async def _complaints(
    user: User, http: httpx.AsyncClient, made: dict[str, str], runs: list[dict[str, Any]]
) -> list[str]:
    found = []
    if sorted(run["schedule_id"] for run in runs) != sorted(made):
        found.append(f"{len(runs)} runs of {len(made)} fires")
    for run in runs:
        if (run["state"], run["attempt"]) != ("SUCCEEDED", 1):
            found.append(
                f"run {run['id']} is {run['state']} after {run['attempt']} attempts: {run.get('failure')}"
            )
        request = sessions_pb.ListMessagesRequest(
            session_id=run["session_id"], roles=[session_pb2.Message.USER]
        )
        listed = await user.call(user.sessions.ListMessages, request)
        sent = [message.content.text for message in listed.messages]
        if sent != [made.get(run["schedule_id"])]:
            found.append(f"to the session of run {run['id']} was sent: {sent}")
    answer = await http.get("/api/v1/sessions", params={"page_size": 1000})
    sessions = answer.json()["sessions"]
    if len(sessions) != len(runs):
        found.append(f"{len(sessions)} sessions for {len(runs)} runs")
    return found


def main() -> int:
    """The command line; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.fires.real", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--pace", type=float, default=3.0, help="seconds between two kills, on average")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # not for secrets
    complaints = asyncio.run(prove(arguments.runs, arguments.pace, chance))
    for complaint in complaints:
        print(f"VIOLATION {complaint}", file=sys.stderr)
    print(f"{len(complaints)} violations")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
