"""Does faults to a running suite, and looks whether the supervisor starts again what died."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.running_suite import RunningSuite

from .plan import Fault
from .proxy import Proxy
from .records import Struck
from .victims import SUPERVISED, clis, listens, session_of, supervised, tools

SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "quit": signal.SIGQUIT,
    "int": signal.SIGINT,
    "freeze": signal.SIGSTOP,
}
BACK_SECONDS = 40.0
"""The supervisor's longest pause, the start of a service on a busy machine, and another kill in between."""
VICTIM_SECONDS = 4.0
"""How long to wait for a victim of the kind: tools come and go."""


class Striker:
    """Does faults to one suite."""

    def __init__(
        self,
        suite: RunningSuite,
        proxy: Proxy,
        sessions: Callable[[], Collection[str]],
        expected: dict[str, int],
    ) -> None:
        """Args: suite, proxy: what is struck; sessions: those that there are; expected: processes of each kind."""
        self._suite = suite
        self._proxy = proxy
        self._sessions = sessions
        self._expected = expected
        self.struck: list[Struck] = []
        self.skipped: list[Fault] = []

    @property
    def supervisor(self) -> psutil.Process:
        """The root of the suite."""
        assert self._suite.process is not None
        return psutil.Process(self._suite.process.pid)

    async def strike(self, fault: Fault) -> Struck | None:
        """Does a fault and waits until it is over and its victim is back; None when there was no victim."""
        if fault.how == "cut":
            count = self._proxy.cut(fault.pick)
            return self._note(fault, [], f"{count} connections") if count else self._skip(fault)
        if fault.how == "flush":
            return await self._flush(fault)
        victim = await self._victim(fault)
        if victim is None:
            return self._skip(fault)
        hit = None
        if fault.kind in ("cli", "tool"):
            hit = [session_id for session_id in (session_of(victim, self._sessions()),) if session_id]
        before = supervised(self.supervisor, fault.kind)
        try:
            victim.send_signal(SIGNALS[fault.how])
        except psutil.Error:
            return self._skip(fault)
        struck = self._note(fault, hit, f"pid {victim.pid}")
        if fault.how == "freeze":
            struck.until = struck.at + fault.seconds
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                with suppress(psutil.Error):
                    victim.send_signal(signal.SIGCONT)
            struck.until = time.time()
        elif fault.kind in SUPERVISED:
            struck.back_seconds = await self._back(fault.kind, before, struck.at)
        return struck

    def _note(self, fault: Fault, hit: list[str] | None, victim: str) -> Struck:
        now = time.time()
        struck = Struck(fault.kind, fault.how, now, now, hit, victim=victim)
        if fault.how == "cut":
            struck.session_ids = None
        self.struck.append(struck)
        return struck

    def _skip(self, fault: Fault) -> None:
        self.skipped.append(fault)

    async def _victim(self, fault: Fault) -> psutil.Process | None:
        end = asyncio.get_running_loop().time() + VICTIM_SECONDS
        while True:
            there = await asyncio.to_thread(self._there, fault.kind)
            if there:
                return there[int(fault.pick * len(there))]
            if asyncio.get_running_loop().time() > end:
                return None
            await asyncio.sleep(0.05)

    def _there(self, kind: str) -> list[psutil.Process]:
        match kind:
            case "cli":
                return clis(self.supervisor)
            case "tool":
                return tools(self.supervisor)
            case _:
                # What has just been started and does not serve yet is left alone: nobody depends on it.
                return [process for process in supervised(self.supervisor, kind) if listens(process)]

    async def _back(self, kind: str, before: Collection[psutil.Process], since: float) -> float:
        """Waits for a successor: one that was not there when the fault was done, and serves."""
        while time.time() - since < BACK_SECONDS:
            if any(process not in before for process in await asyncio.to_thread(self._there, kind)):
                return time.time() - since
            await asyncio.sleep(0.1)
        return -1

    async def missing(self) -> list[str]:
        """Which kinds, after some time to start, have fewer processes that serve than they should have."""
        end = time.time() + BACK_SECONDS
        while True:
            short = [
                f"{kind}: {have} of {want}"
                for kind in SUPERVISED
                if (have := len(await asyncio.to_thread(self._there, kind)))
                < (want := self._expected.get(kind, 1))
            ]
            if not short or time.time() > end:
                return short
            await asyncio.sleep(0.2)

    async def _flush(self, fault: Fault) -> Struck | None:
        state = self._suite.state_dir
        password = json.loads((state / "secrets.json").read_text(encoding="utf-8"))["redis_password"]
        configuration = (state / "run" / "valkey.conf").read_text(encoding="utf-8")
        found = re.search(r"^port (\d+)$", configuration, re.MULTILINE)
        assert found is not None
        client = Redis(port=int(found.group(1)), password=password, socket_connect_timeout=1)
        try:
            await client.flushall()
        except (RedisError, OSError):
            return self._skip(fault)
        finally:
            await client.aclose()
        return self._note(fault, None, "FLUSHALL")
