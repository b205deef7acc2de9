"""Every reason of `ErrorReason`, as a client meets it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from aiagent.scheduler.v1 import error_reason_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import webhook_service_pb2 as webhook_pb
from services.kernel.errors import ServiceError
from services.scheduler.domain.backfills import MAX_AT_WORK
from services.scheduler.gateways import rendering
from services.scheduler.store.tables import backfills
from services.scheduler.store.webhook_tables import webhook_secrets
from services.scheduler.usecases.watching import MAX_PER_USER
from tests.databases import Copy
from tests.integration.scheduler.serving import serving
from tests.integration.session.serving import refusal

pytestmark = pytest.mark.contract
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
MOST_SCHEDULES = 2
REASONS = set(error_reason_pb2.ErrorReason.Reason.keys()) - {"REASON_UNSPECIFIED"}


async def test_each_reason_arrives(databases: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[str, ServiceError] = {}

    async def meet(call: Any) -> None:
        error = await refusal(call)
        assert error.domain == "scheduler.aiagent"
        met[error.reason] = error

    async with serving(databases, scheduler_max_schedules_per_user=MOST_SCHEDULES) as api:
        client = api.client()
        task = await client.task(request_id="once")
        nowhere = str(uuid4())
        await meet(client.CreateTask(pb.CreateTaskRequest()))
        await meet(client.task(name="another", request_id="once"))
        await meet(client.get(nowhere))
        assert met["TASK_NOT_FOUND"].metadata["task_id"] == nowhere
        await meet(client.GetSchedule(pb.GetScheduleRequest(schedule_id=nowhere)))
        assert met["SCHEDULE_NOT_FOUND"].metadata["schedule_id"] == nowhere
        await meet(client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id, etag='"0"')))
        await meet(api.demoted(client).task())
        assert met["ROLE_NOT_ALLOWED"].metadata["role"] == "VIEWER"
        await meet(client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=nowhere)))
        assert met["TASK_RUN_NOT_FOUND"].metadata["task_run_id"] == nowhere
        run = pb.CancelTaskRunRequest(task_run_id=(await client.run(task.id)).id)
        await client.CancelTaskRun(run)
        await meet(client.CancelTaskRun(run))
        assert met["TASK_RUN_ENDED"].metadata["state"] == "CANCELLED"
        await client.RetryTaskRun(pb.RetryTaskRunRequest(task_run_id=run.task_run_id))
        waiting = await client.run(task.id)
        await meet(client.RetryTaskRun(pb.RetryTaskRunRequest(task_run_id=waiting.id)))
        assert met["TASK_RUN_NOT_RETRYABLE"].metadata["state"] == "QUEUED"
        await meet(client.GetScheduleBackfill(pb.GetScheduleBackfillRequest(backfill_id=nowhere)))
        assert met["BACKFILL_NOT_FOUND"].metadata["backfill_id"] == nowhere
        ahead = pb.WatchTaskRunRequest(task_run_id=waiting.id, cursor=1000)
        await meet(client.WatchTaskRun(ahead))
        assert int(met["CURSOR_AHEAD"].metadata["head"]) < ahead.cursor
        watch = pb.WatchTaskRunRequest(task_run_id=waiting.id)
        await meet(api.client(client.caller, lifetime=timedelta(seconds=1)).WatchTaskRun(watch))
        watching = [client.WatchTaskRun(watch) for _ in range(MAX_PER_USER)]
        await asyncio.gather(*(anext(aiter(stream)) for stream in watching))
        await meet(client.WatchTaskRun(watch))
        assert met["TOO_MANY_WATCHES"].metadata["limit"] == str(MAX_PER_USER)
        schedule = await client.schedule(spec={"interval": {"seconds": 60}})
        async with api.database.system() as connection:
            row = {
                "schedule_id": UUID(schedule.id),
                "organization_id": client.caller.organization_id,
                "user_id": client.caller.user_id,
                "overlap_policy": "SKIP",
                "state": "RUNNING",
                **dict.fromkeys(("start_time", "end_time", "handled_until"), LONG_AGO),
                # Not yet to be looked at.
                "available_time": datetime.now(UTC) + timedelta(hours=1),
            }
            rows = [{**row, "id": uuid4()} for _ in range(MAX_AT_WORK)]
            await connection.execute(sa.insert(backfills), rows)
        span = {"start_time": LONG_AGO, "end_time": LONG_AGO + timedelta(hours=1)}
        await meet(client.BackfillSchedule(pb.BackfillScheduleRequest(schedule_id=schedule.id, **span)))
        assert met["TOO_MANY_BACKFILLS"].metadata["limit"] == str(MAX_AT_WORK)
        for _ in range(MOST_SCHEDULES - 1):
            await client.schedule(task.id)
        await meet(client.schedule(task.id))
        assert met["TOO_MANY_SCHEDULES"].metadata["limit"] == str(MOST_SCHEDULES)
        delivery = webhook_pb.GetWebhookDeliveryRequest(webhook_delivery_id=nowhere)
        await meet(client.GetWebhookDelivery(delivery))
        assert met["WEBHOOK_DELIVERY_NOT_FOUND"].metadata["webhook_delivery_id"] == nowhere
        await meet(client.GetWebhookSecret(webhook_pb.GetWebhookSecretRequest(task_id=task.id)))
        assert met["WEBHOOK_NOT_SET"].metadata["task_id"] == task.id
        told = await client.task(webhook={"url": "https://example.com/hook"})
        async with api.database.system() as connection:
            await connection.execute(sa.update(webhook_secrets).values(current=b"of another key"))
        await meet(client.GetWebhookSecret(webhook_pb.GetWebhookSecretRequest(task_id=told.id)))
        assert met["SECRET_UNREADABLE"].metadata["task_id"] == told.id
        # Its processes do not come up.
        monkeypatch.setattr(rendering, "_PROGRAM", tmp_path / "nothing.py")
        await meet(client.task(prompt_template="{{ 1 }}"))
        drained = asyncio.create_task(api.service.drain(5))
        await meet(watching[0])
        await drained

    assert met.keys() == REASONS
    assert {reason: error.kind.value for reason, error in met.items()} == {
        "INVALID_REQUEST": "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED": "INVALID_ARGUMENT",
        "TASK_NOT_FOUND": "NOT_FOUND",
        "SCHEDULE_NOT_FOUND": "NOT_FOUND",
        "ETAG_MISMATCH": "ABORTED",
        "RENDERER_UNAVAILABLE": "UNAVAILABLE",
        "TASK_RUN_NOT_FOUND": "NOT_FOUND",
        "TASK_RUN_ENDED": "FAILED_PRECONDITION",
        "TASK_RUN_NOT_RETRYABLE": "FAILED_PRECONDITION",
        "BACKFILL_NOT_FOUND": "NOT_FOUND",
        "CURSOR_AHEAD": "INVALID_ARGUMENT",
        "TOKEN_EXPIRED": "UNAUTHENTICATED",
        "DRAINING": "UNAVAILABLE",
        "TOO_MANY_WATCHES": "RESOURCE_EXHAUSTED",
        "TOO_MANY_BACKFILLS": "RESOURCE_EXHAUSTED",
        "TOO_MANY_SCHEDULES": "RESOURCE_EXHAUSTED",
        "ROLE_NOT_ALLOWED": "PERMISSION_DENIED",
        "WEBHOOK_DELIVERY_NOT_FOUND": "NOT_FOUND",
        "WEBHOOK_NOT_SET": "FAILED_PRECONDITION",
        "SECRET_UNREADABLE": "FAILED_PRECONDITION",
    }
    assert {reason for reason, error in met.items() if error.violations} == {
        "INVALID_REQUEST",
        "REQUEST_ID_REUSED",
        "CURSOR_AHEAD",
    }
