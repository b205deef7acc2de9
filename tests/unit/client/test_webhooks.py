"""`ai-agent webhooks`, the webhook of a task, and `client.webhooks`."""

from __future__ import annotations

import pytest

from aiagent.scheduler.v1.webhook_pb2 import WebhookAttempt
from aiagent_client import Client, NotFoundError, TaskRun, Webhook, WebhookDelivery
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.terminal import CommandLine

pytestmark = pytest.mark.unit
URL = "https://example.com/hook"


async def test_a_tasks_webhook(server: ScriptedServer, command: CommandLine) -> None:
    done = await command.run(
        "tasks", "create", "nightly", "-p", "x", "--webhook", URL, "--webhook-state", "failed",
        "--webhook-state", "timed-out",
    )  # fmt: skip
    assert done.code == 0, done.err
    (sent,) = server.calls["CreateTask"]
    assert sent.webhook == Webhook(url=URL, states=[TaskRun.FAILED, TaskRun.TIMED_OUT])
    assert f"{URL} on failed, timed out" in done.out

    async def changed(*arguments: str) -> Webhook | None:
        updated = await command.run("tasks", "update", "nightly", *arguments)
        assert updated.code == 0, updated.err
        request = server.calls["UpdateTask"][-1]
        assert request.update_mask.paths == ["webhook"]
        return request.webhook if request.HasField("webhook") else None

    # The ends alone: the URL stays.
    assert await changed("--webhook-state", "succeeded") == Webhook(url=URL, states=[TaskRun.SUCCEEDED])
    assert await changed("--webhook", URL) == Webhook(url=URL)
    assert await changed("--webhook", "") is None
    for arguments in (["update", "nightly"], ["create", "other", "-p", "x"]):
        wrong = await command.run("tasks", *arguments, "--webhook-state", "failed")
        assert wrong.code == 2
        assert "--webhook" in wrong.err


async def test_deliveries_are_listed_and_shown(server: ScriptedServer, command: CommandLine) -> None:
    task = server.new_task(name="nightly", prompt_template="x")
    failed = server.new_delivery(
        task_id=task.id,
        state=WebhookDelivery.FAILED,
        attempts=[
            WebhookAttempt(
                attempt=1, url=URL, http_status=500, error="REFUSED", error_message="answered \x1b[31m500"
            )
        ],
        payload_json='{"type":"task_run.failed"}',
    )
    listed = await command.run("webhooks", "list", "nightly", "--state", "failed")
    assert listed.code == 0, listed.err
    assert failed.id in listed.out
    (sent,) = server.calls["ListWebhookDeliveries"]
    assert (sent.task_id, list(sent.states)) == (task.id, [WebhookDelivery.FAILED])
    shown = await command.run("webhooks", "show", failed.id[:8])
    assert shown.code == 0, shown.err
    assert "500, REFUSED" in shown.out
    assert [len(line) > 80 for line in shown.out.splitlines()].count(True) == 0
    assert "\x1b[31m" not in shown.out
    assert '{"type":"task_run.failed"}' in shown.out
    missing = await command.run("webhooks", "show", "0" * 8)
    assert (missing.code, "there is no delivery" in missing.err) == (1, True)


async def test_redelivery(server: ScriptedServer, command: CommandLine) -> None:
    old = server.new_delivery(message_id="msg_1")
    made = await command.run("webhooks", "redeliver", old.id, "-o", "json")
    assert made.code == 0, made.err
    assert (made.json["message_id"], made.json["redelivery_of"]) == ("msg_1", old.id)
    assert server.calls["RedeliverWebhook"][0].request_id


async def test_secrets_are_printed_alone(server: ScriptedServer, command: CommandLine) -> None:
    server.new_task(name="nightly", prompt_template="x")
    shown = await command.run("webhooks", "secret", "nightly")
    assert (shown.code, shown.out.strip()) == (0, "whsec_one")
    refused = await command.run("webhooks", "rotate-secret", "nightly")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert "RotateWebhookSecret" not in server.calls
    made = await command.run("webhooks", "rotate-secret", "nightly", "--yes")
    assert (made.code, made.out.strip()) == (0, "whsec_two")
    assert "signs beside it until" in made.err
    assert server.calls["RotateWebhookSecret"][0].request_id


async def test_the_client(server: ScriptedServer, client: Client) -> None:
    deliveries = [server.new_delivery() for _ in range(5)]
    found = [one.id async for one in client.webhooks.list(page_size=2)]
    assert found == [one.id for one in reversed(deliveries)]
    assert (await client.webhooks.get(found[0])).id == found[0]
    assert (await client.webhooks.redeliver(found[0])).redelivery_of == found[0]
    assert (await client.webhooks.get_secret("t")).secret == "whsec_one"
    assert (await client.webhooks.rotate_secret("t")).secret == "whsec_two"
    with pytest.raises(NotFoundError) as missing:
        await client.webhooks.get("nothing")
    assert missing.value.reason == "WEBHOOK_DELIVERY_NOT_FOUND"
