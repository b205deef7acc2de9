"""One run: starts the suite, lets users live and faults happen, waits until all is at rest, and collects."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from tests.e2e.conftest import PASSWORD, User
from tests.running_suite import RunningSuite

from .calling import OPTIONS, NotAnswered, Statuses
from .checker import END_SECONDS, Violation, figures, judge
from .people import Person
from .plan import Fault, Plan
from .proxy import Proxy
from .reading import read_log, read_session
from .records import Leftover, Records
from .recovery import kinds_of, longest, longest_by_kind
from .striking import Striker
from .victims import Family, idle_leftovers

LIVE_AGENTS = 6
LOOK_SECONDS = 0.5
FINISH_SECONDS = 30.0
LEFTOVER_SECONDS = 5.0


@dataclass
class Outcome:
    """What a run came to."""

    plan: Plan
    violations: list[Violation]
    figures: dict[str, int | float | str]
    faults: dict[str, int]
    recoveries: dict[str, float]
    statuses: dict[str, int]
    folder: Path
    state: Path
    records: Records = field(repr=False)


class Run:
    """Runs a plan against a suite of its own."""

    def __init__(
        self, plan: Plan, folder: Path, *, replicas: int = 2, executors: int = 1, quiet: bool = True
    ) -> None:
        """Starts nothing yet.

        Args:
            plan: What happens.
            folder: An empty one, for the state directory, the plan and the records.
            replicas: Of the session service.
            executors: How many; more than one is asked of the suite as `--executors N`.
            quiet: Whether to keep progress to itself.
        """
        self._plan = plan
        self._folder = folder
        self._quiet = quiet
        arguments = ["--processes", "--replicas", f"session={replicas}"]
        if executors > 1:
            arguments += ["--executors", str(executors)]
        places = max(1, LIVE_AGENTS // executors)
        self._suite = RunningSuite(
            folder / "state",
            arguments=arguments,
            environment={
                "AIAGENT_EXECUTOR_MAX_LIVE_CLIENTS": str(places),
                # Some answer before it is over, some after, and some at the very moment.
                "AIAGENT_SESSION_PERMISSION_HOLD_SECONDS": "1",
            },
        )
        self._expected = {"session": replicas, "executor": executors}
        self._records = Records()
        self._statuses = Statuses()
        self._family = Family(str(folder))
        self._people: list[Person] = []
        self._begun = 0.0

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"{time.monotonic() - self._begun:6.1f} s  {text}", flush=True)

    async def run(self) -> Outcome:
        """Does it all and judges it."""
        self._plan.save(self._folder / "plan.json")
        await self._suite.start()
        proxy = Proxy(self._suite.port)
        await proxy.start()
        striker = Striker(self._suite, proxy, self._session_ids, self._expected)
        watch = asyncio.create_task(self._look(striker.supervisor))
        try:
            await self._meet(proxy)
            self._begun = time.monotonic()
            self._say(
                f"{self._plan.users} users, {len(self._plan.acts)} acts, {len(self._plan.faults)} faults"
            )
            done = asyncio.Event()
            begun = asyncio.get_running_loop().time()
            async with asyncio.TaskGroup() as group:
                for person in self._people:
                    group.create_task(person.live(begun, done))
                await self._strike(striker, begun)
                self._records.struck = striker.struck
                await self._rest()
                done.set()
            await self._collect()
            self._records.missing = await striker.missing()
            await self._at_rest(striker.supervisor)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            for person in self._people:
                await person.user.channel.close()
            await proxy.stop()
            await self._stop()
        self._records.statuses = dict(sorted(self._statuses.counts.items()))
        self._records.save(self._folder / "records.json")
        return self._judge(striker.skipped)

    def _session_ids(self) -> list[str]:
        return [session_id for person in self._people for session_id in person.session_ids]

    async def _look(self, supervisor: psutil.Process) -> None:
        while True:
            await asyncio.to_thread(self._family.look, supervisor)
            await asyncio.sleep(LOOK_SECONDS)

    async def _meet(self, proxy: Proxy) -> None:
        for number in range(self._plan.users):
            user = User(self._suite.base_url, grpc.aio.insecure_channel(proxy.target, options=OPTIONS))
            auth = auth_service_pb2_grpc.AuthServiceStub(user.channel)
            name = user.email.split("@")[0]
            await auth.Register(
                auth_service_pb2.RegisterRequest(
                    email=user.email, username=name, password=PASSWORD, full_name=f"User {number}"
                ),
                timeout=30,
            )
            tokens = await auth.Login(
                auth_service_pb2.LoginRequest(email=user.email, password=PASSWORD), timeout=30
            )
            user.access_token = tokens.access_token
            acts = [act for act in self._plan.acts if act.user == number]
            self._people.append(Person(number, user, self._records, self._statuses, acts))

    async def _strike(self, striker: Striker, begun: float) -> None:
        loop = asyncio.get_running_loop()

        async def one(fault: Fault) -> None:
            await asyncio.sleep(max(0.0, begun + fault.at - loop.time()))
            struck = await striker.strike(fault)
            if struck is None:
                self._say(f"{fault.kind} {fault.how}: no victim")
            elif struck.back_seconds is not None:
                self._say(
                    f"{fault.kind} {fault.how}: {struck.victim}, back after {struck.back_seconds:.1f} s"
                )
            else:
                held = f" for {fault.seconds} s" if fault.seconds else ""
                self._say(f"{fault.kind} {fault.how}: {struck.victim}{held}")

        async with asyncio.TaskGroup() as group:
            for fault in self._plan.faults:
                group.create_task(one(fault))

    async def _rest(self) -> None:
        """Waits until every turn has ended, for as long as it may take after the last fault."""
        until = self._records.last_fault + END_SECONDS
        self._say("the last fault is over")
        while True:
            open_turns = 0
            for person in self._people:
                for session_id in person.session_ids:
                    try:
                        log = await read_log(person.user, self._statuses, session_id)
                    except (NotAnswered, grpc.aio.AioRpcError):
                        open_turns += 1
                        continue
                    begun = {event.turn_id for event in log if event.kind == "user_message"}
                    open_turns += len(begun - {e.turn_id for e in log if e.kind == "turn_ended"})
            if not open_turns or time.time() > until:
                self._say(f"at rest, {open_turns} turns open")
                return
            await asyncio.sleep(0.5)

    async def _collect(self) -> None:
        for person in self._people:
            await asyncio.gather(*(watcher.finish(FINISH_SECONDS) for watcher in person.watchers))
            for session_id in person.session_ids:
                self._records.sessions.append(await read_session(person.user, self._statuses, session_id))

    async def _at_rest(self, supervisor: psutil.Process) -> None:
        end = time.monotonic() + LEFTOVER_SECONDS
        while True:
            left = [*self._family.outside(supervisor), *idle_leftovers(supervisor, self._session_ids())]
            if not left or time.monotonic() > end:
                self._records.leftovers += left
                return
            await asyncio.sleep(0.25)

    async def _stop(self) -> None:
        process = self._suite.process
        if process is None or process.returncode is not None:
            self._records.troubles.append(f"the suite has ended by itself:\n{self._suite.output}")
            return
        try:
            status = await self._suite.stop()
        except AssertionError:
            self._records.troubles.append("the suite did not stop when told to")
        else:
            if status != 0:
                self._records.troubles.append(f"the suite stopped with status {status}")
        left = list(self._family.outside(None))
        self._records.leftovers += [Leftover(it.pid, it.command, "runs after the suite's end") for it in left]

    def _judge(self, skipped: list[Fault]) -> Outcome:
        records = self._records
        slowest = longest(records)
        facts: dict[str, int | float | str] = {
            "faults": len(records.struck),
            "faults without a victim": len(skipped),
            **figures(records),
            "acts that found no occasion": sum(person.skipped for person in self._people),
            "longest recovery, s": round(slowest.seconds, 1) if slowest else 0.0,
            "longest recovery was of": f"{slowest.kind} {slowest.how}" if slowest else "-",
            "longest until started again, s": round(
                max((it.back_seconds for it in records.struck if it.back_seconds is not None), default=0.0), 1
            ),
        }
        return Outcome(
            self._plan,
            judge(records),
            facts,
            kinds_of(records.struck),
            longest_by_kind(records),
            records.statuses,
            self._folder,
            self._suite.state_dir,
            records,
        )


def forget(outcome: Outcome) -> None:
    """Removes a run's folder."""
    shutil.rmtree(outcome.folder, ignore_errors=True)
