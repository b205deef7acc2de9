"""The schema that migrations build: as declared, with tenants apart; and who may look across them."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.db import Database
from services.scheduler import store
from services.scheduler.domain.retries import RetryPolicy
from services.scheduler.store import (
    claimable,
    claims,
    endings,
    facts,
    firing,
    purging,
    recording,
    system_queries,
    webhook_claims,
    webhooks,
)
from services.scheduler.store.rows import retry_policy_column
from services.scheduler.store.tables import idempotency_keys, metadata, run_attempts, runs, tasks
from tests.integration.session.test_schema import OF_TENANT, functions, of_owner

from .serving import Serving

pytestmark = pytest.mark.integration
OF_THE_SYSTEM = (
    system_queries,
    claimable,
    claims,
    recording,
    endings,
    facts,
    firing,
    purging,
    webhook_claims,
    webhooks,
)
OWNERS = dict.fromkeys(
    (
        "tasks", "schedules", "backfills", "runs", "run_attempts", "webhook_secrets", "webhook_deliveries",
        "webhook_attempts",
    ),
    "user_id",
) | {"idempotency_keys": "caller_id"}  # fmt: skip
"""The tables in which users see their own rows, and admins all of the organization."""
FIRE = datetime(2030, 1, 1, 9, tzinfo=UTC)


def test_the_queries_across_tenants() -> None:
    # Whoever adds one thinks about what it reaches: row-level security does not stand behind it.
    classes = inspect.getmembers(system_queries, inspect.isclass)
    own = [kind for _, kind in classes if kind.__module__ == system_queries.__name__]
    assert {kind.__name__: functions(kind) for kind in own} == {
        "HouseKeeping": {"purge", "purge_facts"},
        "WatchQueries": {"versions"},
        "WaitingQueries": {"oldest_seconds", "was_told"},
        "FireQueries": {"begin", "seconds_to_fire", "seconds_to_backfill", "stale", "keep"},
        "RunQueries": {
            "claim",
            "renew",
            "record",
            "release",
            "hopeless",
            "give_up",
            "promote_forgotten",
            "end_of_deleted_tasks",
        },
        "WebhookQueries": {"claim", "finish", "release", "outlook"},
    }
    # What they hand a connection that sees all tenants to.
    assert {module.__name__.rpartition(".")[2]: functions(module) for module in OF_THE_SYSTEM} == {
        "system_queries": set(),
        "claimable": {"oldest_seconds"},
        "claims": {"claim", "renew", "release", "hopeless", "give_up"},
        "recording": {"record", "fences"},
        "endings": {
            "lock_schedules", "lock_free_schedules", "end", "supersede", "settle", "promote_held_back",
            "promote_forgotten", "end_of_deleted_tasks", "ended_of",
        },
        "facts": {"add_queued", "add_queued_of_each", "add_ended"},
        "firing": {"seconds_to_fire", "seconds_to_backfill", "stale_prompts", "keep_prompt"},
        "purging": {"deleted_tasks", "old_runs"},
        "webhook_claims": {"claim", "end_hopeless", "finish", "release", "outlook", "purge"},
        "webhooks": {"enqueue", "secrets_of"},
    }  # fmt: skip
    assert functions(firing.FiringTransaction) == {
        "take_due", "take_backfill", "open_runs", "hold_runs", "pause", "give_up_backfill", "record", "record_backfill",
    }  # fmt: skip


def test_nothing_else_has_a_connection_across_tenants() -> None:
    # A class or a function with a connection is a caller's, under row-level security, or it is listed above.
    known = {module.__name__.rpartition(".")[2] for module in OF_THE_SYSTEM}
    found = {
        path.stem for path in Path(store.__path__[0]).glob("*.py") if "AsyncConnection" in path.read_text()
    }
    assert found - known == {"notes", "tenant_backfills", "tenant_runs"}


async def test_migrations_build_what_is_declared(scheduler_database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"include_schemas": True, "compare_type": True, "compare_server_default": True}
        options["include_name"] = lambda name, kind, _: kind != "schema" or name == "scheduler"
        options["version_table_schema"] = "scheduler"
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    query = (
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'scheduler'::regnamespace"
    )
    async with scheduler_database.system() as connection:
        assert await connection.run_sync(differences) == []
        checks = set((await connection.execute(sa.text(query))).scalars())
    assert checks == {
        constraint.name
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }


async def test_every_table_forces_row_level_security(scheduler_database: Database) -> None:
    query = (
        "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'scheduler'::regnamespace"
    )
    async with scheduler_database.system() as connection:
        rows = (await connection.execute(sa.text(query))).all()
    assert {row.relname for row in rows if not row.forced} == {"alembic_version"}
    assert len(rows) == len(metadata.tables) + 1


async def test_the_application_sees_and_writes_rows_of_its_tenant_only(scheduler_database: Database) -> None:
    query = (
        "SELECT tablename, qual, coalesce(with_check, qual) AS with_check FROM pg_policies"
        " WHERE schemaname = 'scheduler' AND roles && '{scheduler_application,public}'"
    )
    async with scheduler_database.system() as connection:
        rows = (await connection.execute(sa.text(query))).all()
    # One for each table: of several, any one is enough.
    names = sorted(row.tablename for row in rows)
    assert names == sorted(table.name for table in metadata.tables.values())
    for row in rows:
        owner = OWNERS.get(row.tablename)
        assert row.qual == (f"({OF_TENANT} AND {of_owner(owner)})" if owner else OF_TENANT), row.tablename
        assert row.with_check == row.qual, row.tablename


async def test_what_is_deleted_goes(api: Serving) -> None:
    client = api.client()
    kept, gone = await client.task(request_id="kept"), await client.task(request_id="gone")
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=gone.id))
    async with api.database.system() as connection:
        old = sa.func.clock_timestamp() - timedelta(seconds=1)
        await connection.execute(
            sa.update(idempotency_keys).where(idempotency_keys.c.request_id == "gone").values(expire_time=old)
        )
    assert await system_queries.HouseKeeping(api.database).purge() == 2
    assert [str(row["id"]) for row in await api.rows(tasks)] == [kept.id]
    assert [row["request_id"] for row in await api.rows(idempotency_keys)] == ["kept"]
    assert await system_queries.HouseKeeping(api.database).purge() == 0


async def test_runs_go_when_they_ended_long_ago(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    old, recent = datetime.now(UTC) - timedelta(days=91), datetime.now(UTC) - timedelta(days=89)
    gone = await a_run(api, schedule, state="SUCCEEDED", end_time=old)
    kept = {
        await a_run(api, schedule, state="FAILED", end_time=recent, fire_time=FIRE + timedelta(days=1)),
        # However old it is, it is open.
        await a_run(api, schedule, create_time=old, fire_time=FIRE + timedelta(days=2)),
    }
    attempt = {"organization_id": UUID(schedule.organization_id), "user_id": UUID(schedule.user_id)}
    async with api.database.system() as connection:
        await connection.execute(
            sa.insert(run_attempts).values(run_id=gone, number=1, state="SUCCEEDED", end_time=old, **attempt)
        )
    house = system_queries.HouseKeeping(api.database, keep_runs=timedelta(days=90))
    assert await system_queries.HouseKeeping(api.database).purge() == 0
    assert await house.purge() == 1
    assert await house.purge() == 0
    assert {row["id"] for row in await api.rows(runs) if str(row["schedule_id"]) == schedule.id} == kept
    assert not [row for row in await api.rows(run_attempts) if row["run_id"] == gone]


async def test_so_many_runs_go_at_once(api: Serving) -> None:
    schedule = await api.client().schedule()
    old, keep = datetime.now(UTC) - timedelta(days=200), timedelta(days=100)
    for number in range(5):
        await a_run(api, schedule, state="SKIPPED", end_time=old, fire_time=FIRE + timedelta(days=number))

    async def purge() -> int:
        async with api.database.system() as connection:
            return await purging.old_runs(connection, keep, 2)

    assert [await purge() for _ in range(4)] == [2, 2, 1, 0]


async def test_a_deleted_task_goes_when_its_last_run_has_gone(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    run_id = await a_run(api, schedule, state="SUCCEEDED", end_time=datetime.now(UTC))
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=schedule.task_id))
    house = system_queries.HouseKeeping(api.database, keep_runs=timedelta(days=100))
    await house.purge()
    # What was done is still to be seen.
    shown = await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=str(run_id)))
    assert shown.task_id == schedule.task_id
    async with api.database.system() as connection:
        old = datetime.now(UTC) - timedelta(days=200)
        await connection.execute(sa.update(runs).where(runs.c.id == run_id).values(end_time=old))
    assert await house.purge() >= 2
    assert schedule.task_id not in {str(row["id"]) for row in await api.rows(tasks)}


@pytest.mark.parametrize("error", [sa.exc.TimeoutError(), RuntimeError()])
async def test_what_cannot_be_removed_keeps_nothing_else(
    api: Serving, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(connection: Any) -> int:
        await connection.execute(sa.update(tasks).values(name="half done"))
        raise error

    await api.client().task(request_id=str(uuid4()))
    async with api.database.system() as connection:
        old = sa.func.clock_timestamp() - timedelta(seconds=1)
        await connection.execute(sa.update(idempotency_keys).values(expire_time=old))
    monkeypatch.setattr(purging, "deleted_tasks", fail)
    assert await system_queries.HouseKeeping(api.database).purge() >= 1
    assert await api.rows(idempotency_keys) == []
    assert {row["name"] for row in await api.rows(tasks)} == {"a task"}


async def a_run(api: Serving, schedule: schedule_pb2.Schedule, **values: Any) -> UUID:
    """Puts a run of a schedule's fire there, as a tick does."""
    run_id = uuid4()
    row = {
        "id": run_id,
        "organization_id": UUID(schedule.organization_id),
        "user_id": UUID(schedule.user_id),
        "task_id": UUID(schedule.task_id),
        "schedule_id": UUID(schedule.id),
        "fire_time": FIRE,
        "due_time": FIRE,
        "available_time": FIRE,
        "state": "QUEUED",
        "priority": 0,
        "name": "a task",
        "prompt": "Look around.",
        "variables": {},
        "sdk_options": {},
        "labels": {},
        "run_timeout": timedelta(hours=1),
        "retry_policy": retry_policy_column(RetryPolicy()),
        "run_budget_usd": 0,
        **values,
    }
    async with api.database.system() as connection:
        await connection.execute(sa.insert(runs).values(row))
    return run_id


async def test_a_fire_makes_one_run(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    await a_run(api, schedule)
    with pytest.raises(sa.exc.IntegrityError, match="runs_once"):
        await a_run(api, schedule)
    await a_run(api, schedule, fire_time=FIRE + timedelta(seconds=1))
    await a_run(api, await client.schedule(schedule.task_id))
    backfill = uuid4()
    await a_run(api, schedule, backfill_id=backfill)
    with pytest.raises(sa.exc.IntegrityError, match="runs_once"):
        await a_run(api, schedule, backfill_id=backfill)
    # Those that somebody asks for have no fire.
    for _ in range(2):
        await a_run(api, schedule, schedule_id=None, fire_time=None)
    with pytest.raises(sa.exc.IntegrityError, match="runs_fire"):
        await a_run(api, schedule, fire_time=None)


def many(number: int, of: UUID, varied: str, moved: str) -> sa.TextClause:
    """Makes copies of a run, each with an id of its own; `varied` is a column, `moved` what it is in copy `n`."""
    names = [column.name for column in runs.c if column.name not in {"id", varied}]
    columns = ", ".join(names)
    return sa.text(
        f"INSERT INTO scheduler.runs (id, {varied}, {columns}) SELECT gen_random_uuid(), {moved}, {columns}"
        f" FROM scheduler.runs, generate_series(1, {number}) AS n WHERE id = '{of}'"
    )


@pytest.mark.parametrize("of", ["schedule", "task"])
async def test_what_is_removed_writes_to_no_run_that_is_over(api: Serving, of: str) -> None:
    client = api.client()
    schedule = await client.schedule()
    over = await a_run(api, schedule, state="SUCCEEDED", end_time=FIRE)
    waiting = await a_run(api, schedule, state="PENDING", fire_time=FIRE - timedelta(days=1))
    mine = {"ended": FIRE, "task_id": schedule.task_id}
    versions = sa.text(
        "SELECT id, xmin::text FROM scheduler.runs WHERE end_time = :ended AND task_id = :task_id ORDER BY id"
    )
    async with api.database.system() as connection:
        await connection.execute(many(200, over, "fire_time", "fire_time + n * interval '1 minute'"))
        before = (await connection.execute(versions, mine)).all()
    if of == "schedule":
        await client.DeleteSchedule(pb.DeleteScheduleRequest(schedule_id=schedule.id))
    else:
        await client.DeleteTask(pb.DeleteTaskRequest(task_id=schedule.task_id))
    async with api.database.system() as connection:
        assert (await connection.execute(versions, mine)).all() == before
    assert len(before) == 201
    assert [row["state"] for row in await api.rows(runs) if row["id"] == waiting] == ["CANCELLED"]
    listed = await client.ListTaskRuns(pb.ListTaskRunsRequest(schedule_id=schedule.id, page_size=5))
    assert {run.schedule_id for run in listed.task_runs} == {schedule.id}


async def test_a_run_outlives_its_schedule_and_an_open_one_its_deleted_task(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    run_id = await a_run(api, schedule, state="RUNNING", lease_expire_time=FIRE)
    async with api.database.system() as connection:
        attempt = {"run_id": run_id, "number": 1, "state": "RUNNING"}
        owner = {name: UUID(getattr(schedule, name)) for name in ("organization_id", "user_id")}
        await connection.execute(sa.insert(run_attempts).values(**attempt, **owner))
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=schedule.task_id))

    async def left() -> list[dict[str, Any]]:
        await system_queries.HouseKeeping(api.database, keep_runs=timedelta(days=1)).purge()
        return [row for row in await api.rows(runs) if row["id"] == run_id]

    (row,) = await left()
    assert (str(row["schedule_id"]), row["fire_time"]) == (schedule.id, FIRE)
    async with api.database.system() as connection:
        ended = sa.update(runs).where(runs.c.id == run_id)
        past = datetime.now(UTC) - timedelta(days=2)
        await connection.execute(ended.values(state="CANCELLED", end_time=past, lease_expire_time=None))
    assert await left() == []
    assert [row for row in await api.rows(run_attempts) if row["run_id"] == run_id] == []
