"""Webhooks through the public port: set as JSON, refused where they lead within, their deliveries in every protocol."""

from __future__ import annotations

import asyncio

import pytest

from aiagent.scheduler.v1 import webhook_service_pb2 as pb
from aiagent.scheduler.v1.webhook_service_pb2_grpc import WebhookServiceStub

from .conftest import User

pytestmark = pytest.mark.e2e


async def test_an_end_is_sent_to_where_the_internet_leads(user: User, stranger: User):
    async with user.http() as http:
        body = {"name": "told", "prompt_template": "x", "webhook": {"url": "http://127.0.0.1:8080/"}}
        within = await http.post("/api/v1/tasks", json=body)
        assert (within.status_code, within.json()["details"][0]["reason"]) == (400, "INVALID_REQUEST")
        assert '"ADDRESS"' in within.text
        # A name that is never given an address (RFC 6761).
        body["webhook"] = {
            "url": "https://receiver.invalid/hook",
            "states": ["cancelled", "failed", "succeeded"],
        }
        task = (await http.post("/api/v1/tasks", json=body)).json()
        assert task["webhook"]["states"] == ["SUCCEEDED", "FAILED", "CANCELLED"]
        run = (await http.post(f"/api/v1/tasks/{task['id']}/run", json={})).json()
        await http.post(f"/api/v1/task-runs/{run['id']}/cancel", json={})

        async def delivery() -> dict[str, object]:
            async with asyncio.timeout(60):
                # The agent stops first; then the sender of some process takes it up.
                while True:
                    answer = await http.get("/api/v1/webhook-deliveries", params={"task_run_id": run["id"]})
                    assert answer.status_code == 200, answer.text
                    for one in answer.json()["webhook_deliveries"]:
                        path = f"/api/v1/webhook-deliveries/{one['id']}"
                        found: dict[str, object] = (await http.get(path)).json()
                        if found["attempts"] and found["attempts"][0]["error"]:  # type: ignore[index]
                            return found
                    await asyncio.sleep(0.1)

        found = await delivery()
        assert found["state"] == "PENDING"
        # Where no name server answers at all it takes its five seconds.
        assert found["attempts"][0]["error"] in ("NAME_NOT_RESOLVED", "TIMEOUT")  # type: ignore[index]
        secret = (await http.get(f"/api/v1/tasks/{task['id']}/webhook-secret")).json()
        rotated = (await http.post(f"/api/v1/tasks/{task['id']}/webhook-secret/rotate", json={})).json()
        assert secret["secret"] != rotated["secret"]
        again = (await http.post(f"/api/v1/webhook-deliveries/{found['id']}/redeliver", json={})).json()
        assert (again["message_id"], again["redelivery_of"]) == (found["message_id"], found["id"])
        stub = WebhookServiceStub(user.channel)
        request = pb.ListWebhookDeliveriesRequest(task_id=task["id"])
        listed = await user.call(stub.ListWebhookDeliveries, request)
        assert [one.id for one in listed.webhook_deliveries] == [again["id"], found["id"]]
        async with stranger.http() as other:
            assert (await other.get(f"/api/v1/webhook-deliveries/{found['id']}")).status_code == 404
            assert (await other.get(f"/api/v1/tasks/{task['id']}/webhook-secret")).status_code == 404
        await http.delete(f"/api/v1/tasks/{task['id']}")
