"""`WebhookService` over the wire: deliveries, redelivery, secrets; who sees what."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any
from uuid import uuid4

import pytest

from aiagent.scheduler.v1 import run_pb2, task_pb2, webhook_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as tasks_pb
from aiagent.scheduler.v1 import webhook_service_pb2 as pb
from services.kernel.identity import Role
from services.kernel.identity.keys import base64url_encode
from tests.databases import Copy
from tests.integration.session.serving import refusal

from .serving import Client, Serving, serving

pytestmark = pytest.mark.integration
HOOK = {"url": "https://example.com/hook"}
MISSING = ("NOT_FOUND", "WEBHOOK_DELIVERY_NOT_FOUND")


async def reason(call: Any) -> tuple[str, str]:
    error = await refusal(call)
    assert error.domain == "scheduler.aiagent"
    return error.kind.value, error.reason


async def cancelled(client: Client, task: task_pb2.Task) -> run_pb2.TaskRun:
    run = await client.run(task.id)
    ended: run_pb2.TaskRun = await client.CancelTaskRun(tasks_pb.CancelTaskRunRequest(task_run_id=run.id))
    return ended


async def listed(client: Client, **fields: Any) -> list[webhook_pb2.WebhookDelivery]:
    answer = await client.ListWebhookDeliveries(pb.ListWebhookDeliveriesRequest(**fields))
    return list(answer.webhook_deliveries)


def get(delivery: webhook_pb2.WebhookDelivery) -> pb.GetWebhookDeliveryRequest:
    return pb.GetWebhookDeliveryRequest(webhook_delivery_id=delivery.id)


async def test_an_end_makes_a_delivery_that_its_owner_sees(api: Serving) -> None:
    client = api.client()
    task = await client.task(webhook=HOOK)
    run = await cancelled(client, task)
    (delivery,) = await listed(client)
    assert (delivery.task_id, delivery.task_run_id) == (task.id, run.id)
    assert (delivery.event_type, delivery.state) == (
        "task_run.cancelled",
        webhook_pb2.WebhookDelivery.PENDING,
    )
    assert delivery.payload_json == ""
    whole = await client.GetWebhookDelivery(get(delivery))
    assert json.loads(whole.payload_json)["data"]["task_run"]["id"] == run.id
    assert "Look around." not in whole.payload_json
    assert whole.HasField("next_attempt_time")
    assert not whole.HasField("end_time")


async def test_filters_and_pages(api: Serving) -> None:
    client = api.client()
    one, other = await client.task(webhook=HOOK), await client.task(webhook=HOOK)
    runs = [await cancelled(client, task) for task in (one, other, one)]
    assert [row.task_run_id for row in await listed(client)] == [run.id for run in reversed(runs)]
    assert {row.task_run_id for row in await listed(client, task_id=one.id)} == {runs[0].id, runs[2].id}
    assert [row.task_run_id for row in await listed(client, task_run_id=runs[1].id)] == [runs[1].id]
    assert await listed(client, states=[webhook_pb2.WebhookDelivery.FAILED]) == []
    first = await client.ListWebhookDeliveries(pb.ListWebhookDeliveriesRequest(page_size=2))
    rest = await listed(client, page_size=2, page_token=first.next_page_token)
    assert [row.task_run_id for row in rest] == [runs[0].id]


async def test_others_find_nothing_and_administrators_what_is_their_organizations(api: Serving) -> None:
    client = api.client()
    task = await client.task(webhook=HOOK)
    await cancelled(client, task)
    (delivery,) = await listed(client)
    again = pb.RedeliverWebhookRequest(webhook_delivery_id=delivery.id)
    secret = pb.GetWebhookSecretRequest(task_id=task.id)
    rotate = pb.RotateWebhookSecretRequest(task_id=task.id)
    for stranger in (api.client(), api.colleague(client)):
        assert await listed(stranger) == []
        assert await reason(stranger.GetWebhookDelivery(get(delivery))) == MISSING
        assert await reason(stranger.RedeliverWebhook(again)) == MISSING
        assert await reason(stranger.GetWebhookSecret(secret)) == ("NOT_FOUND", "TASK_NOT_FOUND")
        assert await reason(stranger.RotateWebhookSecret(rotate)) == ("NOT_FOUND", "TASK_NOT_FOUND")
    viewer = api.demoted(client)
    assert len(await listed(viewer)) == 1
    for call in (
        viewer.RedeliverWebhook(again), viewer.GetWebhookSecret(secret), viewer.RotateWebhookSecret(rotate),
    ):  # fmt: skip
        assert await reason(call) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    admin = api.colleague(client, Role.ADMIN)
    assert (await admin.GetWebhookDelivery(get(delivery))).id == delivery.id
    made = await admin.RedeliverWebhook(again)
    assert made.user_id == delivery.user_id
    assert {row.id for row in await listed(client)} == {delivery.id, made.id}


async def test_secrets_are_made_once_kept_and_rotated(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    secret = pb.GetWebhookSecretRequest(task_id=task.id)
    rotate = pb.RotateWebhookSecretRequest(task_id=task.id, request_id="once")
    unset = ("FAILED_PRECONDITION", "WEBHOOK_NOT_SET")
    assert await reason(client.GetWebhookSecret(secret)) == unset
    assert await reason(client.RotateWebhookSecret(rotate)) == unset

    async def change(**fields: Any) -> task_pb2.Task:
        request = tasks_pb.UpdateTaskRequest(task_id=task.id, **fields)
        request.update_mask.paths.append("webhook")
        changed: task_pb2.Task = await client.UpdateTask(request)
        return changed

    await change(webhook=HOOK)
    first = await client.GetWebhookSecret(secret)
    assert first.secret.startswith("whsec_")
    assert len(base64.b64decode(first.secret.removeprefix("whsec_"))) == 32
    assert not first.HasField("previous_secret_expire_time")
    await change(webhook={"url": "https://example.com/elsewhere"})
    assert await client.GetWebhookSecret(secret) == first
    # Removed and set again, it is the one that the receiver has.
    assert not (await change()).HasField("webhook")
    assert await reason(client.GetWebhookSecret(secret)) == unset
    await change(webhook=HOOK)
    assert await client.GetWebhookSecret(secret) == first
    second = await client.RotateWebhookSecret(rotate)
    assert second.secret != first.secret
    lasts = second.previous_secret_expire_time.seconds - second.create_time.seconds
    assert lasts == pytest.approx(24 * 3600, abs=1)
    assert await client.RotateWebhookSecret(rotate) == second


async def test_a_secret_of_another_key_is_rotated(databases: Copy) -> None:
    key = base64url_encode(bytes(32))
    async with serving(databases, scheduler_encryption_key=key) as api:
        client = api.client()
        task = await client.task(webhook=HOOK)
        first = await client.GetWebhookSecret(pb.GetWebhookSecretRequest(task_id=task.id))
    async with serving(databases) as api:
        client = api.client(client.caller)
        read = pb.GetWebhookSecretRequest(task_id=task.id)
        assert await reason(client.GetWebhookSecret(read)) == ("FAILED_PRECONDITION", "SECRET_UNREADABLE")
        second = await client.RotateWebhookSecret(pb.RotateWebhookSecretRequest(task_id=task.id))
        assert second.secret != first.secret
        assert await client.GetWebhookSecret(read) == second


async def test_of_one_message_no_two_deliveries_wait(api: Serving) -> None:
    client = api.client()
    await cancelled(client, await client.task(webhook=HOOK))
    (first,) = await listed(client)
    again = pb.RedeliverWebhookRequest(webhook_delivery_id=first.id)
    await asyncio.gather(*(client.RedeliverWebhook(again) for _ in range(5)))
    states = [delivery.state for delivery in await listed(client)]
    assert len(states) == 6
    assert states.count(webhook_pb2.WebhookDelivery.PENDING) == 1
    assert states.count(webhook_pb2.WebhookDelivery.CANCELLED) == 5


async def test_redelivery_needs_a_webhook(api: Serving) -> None:
    client = api.client()
    task = await client.task(webhook=HOOK)
    await cancelled(client, task)
    (delivery,) = await listed(client)
    request = tasks_pb.UpdateTaskRequest(task_id=task.id)
    request.update_mask.paths.append("webhook")
    await client.UpdateTask(request)
    again = pb.RedeliverWebhookRequest(webhook_delivery_id=delivery.id)
    assert await reason(client.RedeliverWebhook(again)) == ("FAILED_PRECONDITION", "WEBHOOK_NOT_SET")
    nowhere = pb.RedeliverWebhookRequest(webhook_delivery_id=str(uuid4()))
    assert await reason(client.RedeliverWebhook(nowhere)) == MISSING


async def test_a_url_is_judged_by_name_and_rule(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    for url, rule in (("ftp://example.com", "SCHEME"), ("http://[::ffff:10.0.0.1]/", "ADDRESS")):
        request = tasks_pb.UpdateTaskRequest(task_id=task.id, webhook={"url": url})
        request.update_mask.paths.append("webhook")
        error = await refusal(client.UpdateTask(request))
        (violation,) = error.violations
        assert (violation.field, violation.reason) == ("webhook.url", rule)
