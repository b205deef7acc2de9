"""Tasks through the public port: what one protocol writes, the others read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import task_pb2
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from .conftest import User

pytestmark = pytest.mark.e2e
_SERVICE = "/aiagent.scheduler.v1.SchedulerService"


async def over_grpc_web(http: httpx.AsyncClient, method: str, request: Any, kind: type[Any]) -> Any:
    """Calls a method as a browser does, and reads the first frame of the answer."""
    raw = request.SerializeToString()
    answer = await http.post(
        f"{_SERVICE}/{method}",
        content=b"\0" + len(raw).to_bytes(4) + raw,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )
    assert answer.headers.get("grpc-status", "0") == "0", answer.headers
    return kind.FromString(answer.content[5 : 5 + int.from_bytes(answer.content[1:5])])


async def schedules_of(user: User, http: httpx.AsyncClient, task_id: str) -> None:
    """Keeps a schedule, looks at when it fires, pauses and resumes it, and refuses nonsense."""
    spec = {"cron_expression": "30 2 * * *", "time_zone": "Europe/Berlin"}
    query = {f"spec.{name}": value for name, value in spec.items()}
    query |= {"count": "2", "after": "2026-03-28T12:00:00Z"}
    answer = await http.get("/api/v1/schedules/preview", params=query)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert [fire["local_time"] for fire in shown["fires"]] == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]
    body = {"task_id": task_id, "spec": spec, "variables": {"repository": "core"}}
    never = {**body, "spec": {"cron_expression": "0 0 30 2 *"}}
    answer = await http.post("/api/v1/schedules", json=never)
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "INVALID_REQUEST")
    assert "spec.cron_expression" in answer.text
    made = (await http.post("/api/v1/schedules", json=body)).json()
    assert (made["state"], made["overlap_policy"]) == ("ACTIVE", "SKIP")
    path = f"/api/v1/schedules/{made['id']}"
    paused = (await http.post(f"{path}/pause", json={"note": "holiday"})).json()
    assert (paused["state"], paused["note"]) == ("PAUSED", "holiday")
    resumed = (await http.post(f"{path}/resume", json={})).json()
    assert (resumed["state"], resumed["next_fire_time"]) == ("ACTIVE", made["next_fire_time"])
    fires = (await http.get(f"{path}/preview", params={"count": "1"})).json()["fires"]
    assert [fire["fire_time"] for fire in fires] == [made["next_fire_time"]]
    span = {"start_time": "2026-03-27T00:00:00Z", "end_time": "2026-03-30T00:00:00Z"}
    answer = await http.post(f"{path}/backfills", json={**span, "overlap_policy": "SKIP"})
    assert answer.status_code == 200, answer.text
    backfill = answer.json()
    assert (backfill["start_time"], backfill["overlap_policy"]) == (span["start_time"], "SKIP")
    turned = {"start_time": span["end_time"], "end_time": span["start_time"]}
    assert "end_time" in (await http.post(f"{path}/backfills", json=turned)).text
    cancelled = (await http.post(f"/api/v1/backfills/{backfill['id']}/cancel", json={})).json()
    assert cancelled["state"] in ("CANCELLED", "COMPLETED")
    assert (await http.get(f"/api/v1/backfills/{backfill['id']}")).json() == cancelled
    found = (await http.get(f"{path}/backfills")).json()
    assert [one["id"] for one in found["backfills"]] == [backfill["id"]]
    stub = SchedulerServiceStub(user.channel)
    listed = await user.call(stub.ListSchedules, pb.ListSchedulesRequest(task_id=task_id))
    assert [schedule.id for schedule in listed.schedules] == [made["id"]]


async def test_a_task_is_the_same_in_every_protocol(user: User, stranger: User):
    async with user.http() as http:
        body = {
            "name": "Nightly review",
            "prompt_template": "Review {{ repository }}.",
            "variables": [{"name": "repository", "type": "string", "required": True}],
            "run_timeout": "1800s",
        }
        answer = await http.post("/api/v1/tasks", json=body)
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert (made["name"], made["run_timeout"], made["variables"][0]["type"]) == (
            "Nightly review",
            "1800s",
            "STRING",
        )
        tasks = SchedulerServiceStub(user.channel)
        read = await user.call(tasks.GetTask, pb.GetTaskRequest(task_id=made["id"]))
        assert read.etag == made["etag"]
        assert (
            await over_grpc_web(http, "GetTask", pb.GetTaskRequest(task_id=made["id"]), task_pb2.Task) == read
        )
        answer = await http.patch(
            f"/api/v1/tasks/{made['id']}",
            json={"priority": 5, "update_mask": "priority", "etag": made["etag"]},
        )
        assert answer.json()["priority"] == 5
        stale = await http.delete(f"/api/v1/tasks/{made['id']}", params={"etag": made["etag"]})
        assert (stale.status_code, stale.json()["details"][0]["reason"]) == (409, "ETAG_MISMATCH")
        async with stranger.http() as other:
            assert (await other.get(f"/api/v1/tasks/{made['id']}")).status_code == 404
            assert (await other.get("/api/v1/tasks")).json()["tasks"] == []
        listed = (await http.get("/api/v1/tasks", params={"name_contains": "nightly"})).json()
        assert [task["id"] for task in listed["tasks"]] == [made["id"]]
        await schedules_of(user, http, made["id"])
        assert (await http.delete(f"/api/v1/tasks/{made['id']}")).status_code == 200
        assert (await http.get(f"/api/v1/tasks/{made['id']}")).status_code == 404
