"""What other processes are told of runs: with what it tells of or not at all, and on to the broker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from aiagent.events.v1.task_run_fact_pb2 import TaskRunFact
from deploy.local.ports import free_port
from services.kernel.db import Database
from services.kernel.testing import a_caller
from services.scheduler.bootstrap import migrate
from services.scheduler.domain.runs import Failure, Usage
from services.scheduler.domain.states import RunState
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.facts import RUNS_QUEUED, EndedRun, add_ended, add_queued
from services.scheduler.store.tables import outbox
from tests.databases import Copy
from tests.integration.auth.harness import an_encryption_key
from tests.kafka_broker import LocalBroker, read

from .serving import serving

pytestmark = pytest.mark.integration
END = datetime(2030, 1, 1, 9, 0, 1, tzinfo=UTC)


async def told(database: Database, key: object) -> list[TaskRunFact]:
    """What stands in the outbox under a key."""
    async with database.system() as connection:
        query = sa.select(outbox).where(outbox.c.key == str(key)).order_by(outbox.c.id)
        rows = (await connection.execute(query)).all()
    facts = []
    for row in rows:
        fact = TaskRunFact.FromString(row.payload)
        assert (fact.event_id, fact.organization_id) == (str(row.id), str(row.organization_id))
        assert row.topic == "runs"
        facts.append(fact)
    return facts


async def test_queued_runs_are_told_once_and_wake_at_the_commit(scheduler_database: Database) -> None:
    woken: list[str] = []
    scheduler_database.on_commit(RUNS_QUEUED, lambda: woken.append("now"))
    caller = a_caller()
    async with scheduler_database.tenant(caller) as connection:
        await add_queued(connection, caller.organization_id, 0)
    assert await told(scheduler_database, caller.organization_id) == []
    with pytest.raises(RuntimeError):
        async with scheduler_database.tenant(caller) as connection:
            await add_queued(connection, caller.organization_id, 3)
            raise RuntimeError
    assert woken == []
    async with scheduler_database.tenant(caller) as connection:
        await add_queued(connection, caller.organization_id, 3)
        assert woken == []
    assert woken == ["now"]
    (fact,) = await told(scheduler_database, caller.organization_id)
    assert fact.runs_queued.run_count == 3


async def test_an_ended_run_is_told_with_what_it_came_to(scheduler_database: Database) -> None:
    values: dict[str, Any] = {name: uuid4() for name in ("organization_id", "run_id", "task_id", "user_id")}
    failed = EndedRun(
        **values,
        schedule_id=uuid4(),
        state=RunState.FAILED,
        failure=Failure("MODEL_ERROR", "so " * 5000),
        attempts=2,
        session_id=uuid4(),
        usage=Usage(1, 2, 3, 4),
        cost_usd=0.25,
        start_time=datetime(2030, 1, 1, 9, tzinfo=UTC),
        end_time=END,
    )
    bare = EndedRun(
        **{**values, "run_id": uuid4()},
        schedule_id=None,
        state=RunState.CANCELLED,
        failure=None,
        attempts=0,
        session_id=None,
        usage=Usage(),
        cost_usd=0.0,
        start_time=None,
        end_time=END,
    )
    async with scheduler_database.system() as connection:
        await add_ended(connection, [failed, bare])
    (fact,) = await told(scheduler_database, failed.run_id)
    ended = fact.run_ended
    assert (ended.task_run_id, ended.task_id) == (str(failed.run_id), str(failed.task_id))
    assert (ended.user_id, ended.schedule_id) == (str(failed.user_id), str(failed.schedule_id))
    assert (ended.state, ended.attempt_count, ended.session_id) == ("FAILED", 2, str(failed.session_id))
    assert (ended.failure.reason, len(ended.failure.message)) == ("MODEL_ERROR", 4096)
    usage = ended.usage
    assert [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens] == [
        *(1, 2, 3, 4)
    ]
    assert ended.cost_usd == 0.25
    assert ended.start_time.ToDatetime(UTC) == failed.start_time
    assert ended.end_time.ToDatetime(UTC) == END
    (fact,) = await told(scheduler_database, bare.run_id)
    ended = fact.run_ended
    assert (ended.state, ended.schedule_id, ended.session_id) == ("CANCELLED", "", "")
    assert not ended.HasField("failure")
    assert not ended.HasField("start_time")


async def test_a_service_publishes_what_people_queue(databases: Copy) -> None:
    broker = LocalBroker(free_port())
    await broker.start()
    settings: dict[str, Any] = {
        "kafka_url": f"kafka://127.0.0.1:{broker.port}",
        "kafka_local_broker": True,
        "scheduler_encryption_key": an_encryption_key(),
    }
    urls = {
        f"scheduler_{name}database_url": databases.url(f"scheduler_{role}")
        for name, role in (("", "application"), ("system_", "system"), ("owner_", "owner"))
    }
    try:
        for outcome in ("was created", "is there"):
            line = await migrate(SchedulerSettings(_env_file=None, **urls, **settings))
            assert line.endswith(f"; topic runs {outcome}")
        async with serving(databases, **settings) as running:
            person = running.client()
            await person.run(request_id="once")
            (fact,) = await told(running.database, person.caller.organization_id)
            assert fact.runs_queued.run_count == 1
            records = await read(broker.broker, "runs", [fact.event_id])
    finally:
        broker.kill()
    (record,) = [record for record in records if TaskRunFact.FromString(record.value) == fact]
    assert record.key == str(person.caller.organization_id).encode()
    assert dict(record.headers)["type"] == b"aiagent.events.v1.TaskRunFact"
