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
        assert (await http.delete(f"/api/v1/tasks/{made['id']}")).status_code == 200
        assert (await http.get(f"/api/v1/tasks/{made['id']}")).status_code == 404
