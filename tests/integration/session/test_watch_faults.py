"""Two replicas and a Valkey that fails: what is committed on one is seen on the other within two seconds.

The clock of a measurement is the database's: an event is timed from its commit to its sight.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from redis.asyncio import Redis

from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from deploy.local.state import StateDirectory
from services.kernel.testing import a_caller
from services.session.domain.events import EventDraft, Notice
from services.session.store import event_log
from tests.databases import Copy

from .serving import Client, Serving, serving

pytestmark = pytest.mark.integration

LATE_SECONDS = 2.0


@dataclass
class Replicas:
    """Two replicas of the session service on one database and one Valkey."""

    one: Serving
    other: Serving
    valkey: Valkey


@pytest.fixture(scope="module")
async def replicas(databases: Copy) -> AsyncIterator[Replicas]:
    with tempfile.TemporaryDirectory(prefix="aiagent-faults-") as folder:
        state = StateDirectory(Path(folder))
        state.open()
        valkey = Valkey(state, state.secrets())
        await valkey.start()
        shared = Path(folder) / "shared"
        async with serving(databases, valkey, shared) as one, serving(databases, valkey, shared) as other:
            yield Replicas(one, other, valkey)
        await valkey.stop()


@dataclass
class Sight:
    """What a watcher has seen, and how long after its commit."""

    client: Client
    session_id: str
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    kinds: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    first: float = 0.0

    async def until(self, kind: str) -> None:
        """Watches until an event of this kind has come."""
        call = self.client.sessions.WatchSession(pb.WatchSessionRequest(session_id=self.session_id))
        async for response in call:
            now = datetime.now(UTC)
            self.first = self.first or (now - self.begun).total_seconds()
            for item in response.items:
                if item.HasField("event"):
                    committed = item.event.create_time.ToDatetime(UTC)
                    seen = item.event.payload.WhichOneof("kind")
                    self.kinds.append(seen)
                    # Who came later has waited from then on.
                    waited = (now - max(committed, self.begun)).total_seconds()
                    self.slowest = max(self.slowest, (waited, seen))
            if kind in self.kinds:
                call.cancel()
                return


@asynccontextmanager
async def fault(valkey: Valkey, name: str) -> AsyncIterator[None]:
    """Strikes Valkey; at the end it is there again."""
    assert valkey.pid is not None
    if name == "flushed":
        redis = Redis.from_url(valkey.url)
        await redis.flushall()
        await redis.aclose()
        yield
    elif name == "frozen":
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
    else:
        await valkey.stop()
        starting = asyncio.create_task(valkey.start()) if name == "restarted" else None
        yield
        await (starting or valkey.start())


@pytest.mark.parametrize("name", ["flushed", "killed", "frozen", "restarted"])
async def test_the_end_of_a_turn_is_seen_on_the_other_replica(replicas: Replicas, name: str):
    caller = a_caller()
    one, other = replicas.one.client(caller), replicas.other.client(caller)
    session_id = (await one.session()).id
    sights = [Sight(one, session_id), Sight(other, session_id)]
    turn = await one.send(session_id, "stay")
    async with asyncio.TaskGroup() as group:
        for sight in sights:
            group.create_task(sight.until("turn_ended"))
        waiting = group.create_task(other.wait(turn))

        async def begun() -> bool:
            return all("assistant_message" in sight.kinds for sight in sights)

        await replicas.one.until(begun)
        async with fault(replicas.valkey, name):
            # Who comes now is served as those who are there.
            late = Sight(other, session_id)
            sights.append(late)
            joined = group.create_task(late.until("turn_ended"))
            interrupted = datetime.now(UTC)
            await other.sessions.InterruptTurn(
                pb.InterruptTurnRequest(session_id=session_id, turn_id=turn.id)
            )
            waited = await waiting
            answered = datetime.now(UTC)
            await joined
    log = await one.events(session_id)
    assert late.first < LATE_SECONDS / 2, "a history waits for nobody"
    assert waited.turn.HasField("end_time")
    took = (log[-1].create_time.ToDatetime(UTC) - interrupted).total_seconds()
    assert took < LATE_SECONDS, "the driver on the first replica hears of it, with Valkey or without"
    assert (answered - log[-1].create_time.ToDatetime(UTC)).total_seconds() < LATE_SECONDS
    for sight in sights:
        assert sight.kinds == [event.payload.WhichOneof("kind") for event in log][: len(sight.kinds)]
        assert sight.slowest[0] < LATE_SECONDS, sight.slowest


async def test_an_event_that_nobody_announced_is_seen_however_busy_the_drivers_are(replicas: Replicas):
    client = replicas.one.client()
    session_id = (await client.session()).id
    await client.talk(session_id)
    sight = Sight(client, session_id)
    async with AsyncExitStack() as busy, asyncio.TaskGroup() as group:
        seeing = group.create_task(sight.until("notice"))
        await replicas.one.until(lambda: _true(sight.first))
        for _ in range(4):
            await busy.enter_async_context(replicas.one.service._database.system())
        async with replicas.one.database.system() as connection:
            head = await event_log.lock_head(connection, UUID(session_id))
            await event_log.append(connection, head, [EventDraft(Notice("LOST", "its writer died here"))])
        await seeing
    assert sight.slowest[0] < LATE_SECONDS, sight.slowest


async def _true(value: object) -> bool:
    return bool(value)
