"""Watching runs, as clients do: from any cursor, on any replica, to the run's end or the stream's."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa

from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.db import Database
from services.kernel.db.database import note
from services.scheduler.api import runs as runs_api
from services.scheduler.domain.runs import Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.store.notes import RUNS_CHANGED
from services.scheduler.store.system_queries import HouseKeeping, RunQueries
from services.scheduler.store.tables import run_attempts, runs
from services.scheduler.usecases import watching
from services.scheduler.usecases.worker.ports import Progress
from tests.databases import Copy
from tests.integration.session.serving import reason, refusal

from .serving import Client, Serving, field_of, serving

pytestmark = pytest.mark.integration
NOW = sa.func.clock_timestamp()
RUNNING = {"state": "RUNNING", "attempt": 1, "lease_expire_time": NOW + timedelta(hours=1), "start_time": NOW}
OVER = {"state": "SUCCEEDED", "lease_expire_time": None, "end_time": NOW, "result_text": "all is well"}


async def change(database: Database, run_id: str, *, noted: bool = False, **values: Any) -> None:
    """Changes a run as a worker does; one that begins has an attempt from then on."""
    async with database.system() as connection:
        if noted:
            note(connection, RUNS_CHANGED)
        query = sa.update(runs).where(runs.c.id == UUID(run_id)).returning(runs)
        row = (await connection.execute(query.values(version=runs.c.version + 1, **values))).one()
        if values.get("state") == "RUNNING":
            owner = {"organization_id": row.organization_id, "user_id": row.user_id}
            attempt = {"run_id": row.id, "number": row.attempt, "state": "RUNNING", **owner}
            await connection.execute(sa.insert(run_attempts).values(attempt))


def watch(client: Client, run_id: str, cursor: int = 0) -> Any:
    return aiter(client.WatchTaskRun(pb.WatchTaskRunRequest(task_run_id=run_id, cursor=cursor)))


async def rest(stream: Any) -> list[tuple[str, int]]:
    """What comes until the end: states and cursors."""
    return [
        (run_pb2.TaskRun.State.Name(response.task_run.state), response.cursor) async for response in stream
    ]


async def test_a_run_is_told_as_it_stands_then_after_each_change(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    stream = watch(client, run.id)
    first = await anext(stream)
    assert (first.task_run, first.cursor) == (run, 1)
    await change(api.database, run.id, **RUNNING)
    second = await anext(stream)
    assert [attempt.attempt for attempt in second.task_run.attempts] == [1]
    assert second.task_run == await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=run.id))
    await change(api.database, run.id, **OVER)
    assert await rest(stream) == [("SUCCEEDED", 3)]


async def test_what_changes_in_quick_succession_comes_as_one(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    stream = watch(client, run.id)
    await anext(stream)
    async with api.database.system() as connection:
        await connection.execute(
            sa.update(runs).where(runs.c.id == UUID(run.id)).values(version=7, priority=9)
        )
    response = await anext(stream)
    assert (response.task_run.priority, response.cursor) == (9, 7)
    await change(api.database, run.id, state="CANCELLED", end_time=NOW)
    assert await rest(stream) == [("CANCELLED", 8)]


@pytest.mark.parametrize("cursor", range(6))
async def test_a_run_that_is_over_is_told_to_who_has_not_seen_it(api: Serving, cursor: int) -> None:
    client = api.client()
    run = await client.run()
    for values in (RUNNING, {}, OVER):
        await change(api.database, run.id, **values)
    assert await rest(watch(client, run.id, cursor)) == ([("SUCCEEDED", 4)] if cursor < 4 else [])


@pytest.mark.parametrize("cursor", range(4))
async def test_a_stream_is_resumed_at_any_cursor(api: Serving, cursor: int) -> None:
    client = api.client()
    run = await client.run()
    for values in (RUNNING, {}):
        await change(api.database, run.id, **values)
    stream = watch(client, run.id, cursor)
    if cursor < 3:
        assert (await anext(stream)).cursor == 3
    following = asyncio.create_task(rest(stream))
    await change(api.database, run.id, **OVER)
    # Once, and nothing before it again.
    assert (await following)[-1] == ("SUCCEEDED", 4)
    assert len(following.result()) == 1


@pytest.mark.parametrize("cursor", [2, 2**63 - 1])
async def test_a_cursor_of_what_has_not_happened_is_refused(api: Serving, cursor: int) -> None:
    client = api.client()
    run = await client.run()
    error = await refusal(watch(client, run.id, cursor))
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "CURSOR_AHEAD")
    assert [found.field for found in error.violations] == ["cursor"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [({"cursor": -1, "task_run_id": str(uuid4())}, "cursor"), ({"task_run_id": "1; --"}, "task_run_id")],
)
async def test_nonsense_is_refused(api: Serving, request_: dict[str, Any], field: str) -> None:
    assert await field_of(api.client().WatchTaskRun(pb.WatchTaskRunRequest(**request_))) == field


async def test_a_commit_of_this_process_is_told_at_once(
    api: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 3600)
    client = api.client()
    run = await client.run()
    stream = watch(client, run.id)
    await anext(stream)
    # The service's own connections.
    await change(api.service._database, run.id, noted=True, **RUNNING)
    async with asyncio.timeout(5):
        assert (await anext(stream)).cursor == 2
    await change(api.service._database, run.id, noted=True, **OVER)
    async with asyncio.timeout(5):
        assert await rest(stream) == [("SUCCEEDED", 3)]


async def test_whoever_changes_a_run_notes_it(api: Serving, databases: Copy) -> None:
    client = api.client()
    noted: list[str] = []
    api.service._database.on_commit(RUNS_CHANGED, lambda: noted.append("cancelled"))
    try:
        run = await client.run()
        await client.CancelTaskRun(pb.CancelTaskRunRequest(task_run_id=run.id))
        assert noted == ["cancelled"]
        await client.DeleteTask(pb.DeleteTaskRequest(task_id=run.task_id))
        assert noted == ["cancelled"] * 2
    finally:
        api.service._database.on_commit(RUNS_CHANGED, api.service._looks.wake)
    database = databases.open("scheduler")
    try:
        database.on_commit(RUNS_CHANGED, lambda: noted.append("worked"))
        noted.clear()
        queue = RunQueries(database)
        await client.run()
        claims = (await queue.claim("a worker", 100)).runs
        await queue.record([Progress(claim, uuid4(), uuid4()) for claim in claims])
        await queue.record([Progress(claim, outcome=Outcome(RunState.SUCCEEDED)) for claim in claims])
        assert noted == ["worked"] * 3
        assert not (await queue.claim("a worker", 100)).runs
        assert noted == ["worked"] * 3
        while await HouseKeeping(database).purge():
            pass
        noted.clear()
        await HouseKeeping(database).purge()
        assert noted == []
        await HouseKeeping(database, keep_runs=timedelta()).purge()
        await queue.promote_forgotten()
        assert noted == ["worked"] * 2
    finally:
        await database.close()


async def test_what_another_replica_does_is_told(api: Serving, databases: Copy) -> None:
    client = api.client()
    run = await client.run()
    async with serving(databases) as other:
        stream = watch(other.client(client.caller), run.id)
        assert (await anext(stream)).cursor == 1
        await change(api.service._database, run.id, noted=True, **RUNNING)
        assert (await anext(stream)).cursor == 2
        drained = asyncio.create_task(other.service.drain(5))
        # At once, not with the next checkpoint: the drain waits for it.
        error = await asyncio.wait_for(refusal(stream), 4)
        assert (error.kind.value, error.reason) == ("UNAVAILABLE", "DRAINING")
        await drained
    # Any replica goes on where that one ended.
    stream = watch(client, run.id, 2)
    following = asyncio.create_task(rest(stream))
    await change(api.database, run.id, **OVER)
    assert await following == [("SUCCEEDED", 3)]


async def test_it_ends_when_the_run_is_removed(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    stream = watch(client, run.id)
    await anext(stream)
    async with api.database.system() as connection:
        await connection.execute(sa.delete(runs).where(runs.c.id == UUID(run.id)))
    assert await reason(stream) == "NOT_FOUND TASK_RUN_NOT_FOUND"


async def test_it_ends_with_its_token(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    brief = api.client(client.caller, lifetime=timedelta(seconds=1))
    assert await reason(watch(brief, run.id)) == "UNAUTHENTICATED TOKEN_EXPIRED"


async def test_silence_is_broken_by_checkpoints(api: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "CHECKPOINT_SECONDS", 0.05)
    client = api.client()
    run = await client.run()
    stream = watch(client, run.id, 1)
    for _ in range(3):
        checkpoint = await anext(stream)
        assert (checkpoint.HasField("task_run"), checkpoint.cursor) == (False, 1)
    await change(api.database, run.id, state="CANCELLED", end_time=NOW)
    assert (await rest(stream))[-1] == ("CANCELLED", 2)


async def test_places_are_a_persons_own_and_come_back(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    streams = [
        client.WatchTaskRun(pb.WatchTaskRunRequest(task_run_id=run.id)) for _ in range(watching.MAX_PER_USER)
    ]
    await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
    assert await reason(watch(client, run.id)) == "RESOURCE_EXHAUSTED TOO_MANY_WATCHES"
    other = api.client()
    assert (await anext(watch(other, (await other.run()).id))).cursor == 1
    for stream in streams:
        stream.cancel()
    # The server hears of their end a moment later.
    async with asyncio.timeout(5):
        while True:
            with suppress(grpc.aio.AioRpcError):
                assert (await anext(watch(client, run.id))).cursor == 1
                break


async def test_a_run_and_its_attempts_are_of_one_moment(api: Serving) -> None:
    client = api.client()
    run = await client.run()

    async def attempts() -> None:
        for number in range(1, 60):
            await change(api.database, run.id, **{**RUNNING, "attempt": number})

    working = asyncio.create_task(attempts())
    while not working.done():
        found = await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=run.id))
        assert found.attempt == len(found.attempts)
    await working


async def test_a_stream_with_nothing_to_say_is_accepted_at_once(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    call = client.WatchTaskRun(pb.WatchTaskRunRequest(task_run_id=run.id, cursor=1))
    # Far sooner than a checkpoint comes.
    await asyncio.wait_for(call.initial_metadata(), 5)
    call.cancel()


async def test_whoever_does_not_read_leaves_its_place(api: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_api, "_UNREAD_SECONDS", 0.2)
    client = api.client()
    run = await client.run()
    # More than lies between a server and a client that takes nothing.
    await change(api.database, run.id, variables={"text": "x" * 4_000_000})
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.service.port}", options=options) as channel:
        deaf = Client(channel, api.tokens.metadata(client.caller), client.caller)
        call = deaf.WatchTaskRun(pb.WatchTaskRunRequest(task_run_id=run.id))
        await call.initial_metadata()
        assert UUID(run.id) in api.service._looks._places
        async with asyncio.timeout(5):
            while UUID(run.id) in api.service._looks._places:
                await asyncio.sleep(0.01)
        # Whenever it reads on, it finds out that it is to resume.
        assert await reason(call) == "UNAVAILABLE DRAINING"
