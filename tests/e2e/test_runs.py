"""Runs of tasks through the public port, by the real agent: to their end, and past the death of the scheduler."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from aiagent.session.v1 import session_pb2
from aiagent.session.v1 import session_service_pb2 as sessions_pb
from aiagent_client import Client
from tests.running_suite import RunningSuite

from .conftest import OPTIONS, User
from .script import prompt, say, use

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
FINAL = {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"}


@pytest_asyncio.fixture(scope="module")
async def in_processes() -> AsyncIterator[RunningSuite]:
    """A suite with a process for each service, to be killed one by one."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-runs-"))
    suite = RunningSuite(directory / "state", arguments=["--processes"])
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def started(http: httpx.AsyncClient, script: str, **fields: Any) -> dict[str, Any]:
    """Makes a task that follows a script, and runs it."""
    body = {
        "name": "A task",
        "prompt_template": "In {{ place }}: {{ script }}",
        "variables": [{"name": "place", "default_value": "the attic"}, {"name": "script", "required": True}],
        "sdk_options": {"permission_mode": "BYPASS_PERMISSIONS"},
        **fields,
    }
    task = (await http.post("/api/v1/tasks", json=body)).json()
    answer = await http.post(f"/api/v1/tasks/{task['id']}/run", json={"variables": {"script": script}})
    assert answer.status_code == 200, answer.text
    run: dict[str, Any] = answer.json()
    return run


async def until(http: httpx.AsyncClient, run: dict[str, Any], *states: str) -> dict[str, Any]:
    """Reads a run until it is in one of these states."""
    async with asyncio.timeout(60):
        while True:
            # The services may be on their way back.
            answer = await http.get(f"/api/v1/task-runs/{run['id']}")
            if answer.status_code == 200 and answer.json()["state"] in states:
                found: dict[str, Any] = answer.json()
                return found
            await asyncio.sleep(0.05)


async def prompts(user: User, session_id: str) -> list[str]:
    """What was sent to a session, by its owner's own reading."""
    request = sessions_pb.ListMessagesRequest(session_id=session_id, roles=[session_pb2.Message.USER])
    listed = await user.call(user.sessions.ListMessages, request)
    return [message.content.text for message in listed.messages]


async def test_a_task_is_run_to_its_result(user: User, stranger: User):
    async with user.http() as http, stranger.http() as other:
        script = prompt(use("Bash", command="echo here > seen"), say("all is well"))
        run = await until(http, await started(http, script), *FINAL)
        assert (run["state"], run["result"], run["attempt"]) == ("SUCCEEDED", "all is well", 1)
        assert run["variables"] == {"place": "the attic", "script": script}
        assert run["cost_usd"] > 0
        assert int(run["usage"]["output_tokens"]) > 0
        assert await prompts(user, run["session_id"]) == [f"In the attic: {script}"]
        assert (await http.get(f"/api/v1/sessions/{run['session_id']}")).json()["mode"] == "BACKGROUND"
        listed = (await http.get("/api/v1/task-runs", params={"task_id": run["task_id"]})).json()
        assert [found["id"] for found in listed["task_runs"]] == [run["id"]]
        assert (await other.get(f"/api/v1/task-runs/{run['id']}")).status_code == 404
        refused = await http.post(f"/api/v1/tasks/{run['task_id']}/run", json={"variables": {"place": 7}})
        assert refused.status_code == 400
        assert {"variables.place", "variables.script"} == {
            violation["field"]
            for detail in refused.json()["details"]
            for violation in detail.get("field_violations", [])
        }


async def test_a_run_is_cancelled_and_its_agent_stopped(user: User):
    async with user.http() as http:
        run = await started(http, prompt(use("Bash", command="sleep 60"), say("never")))
        async with asyncio.timeout(30):
            while not run["session_id"] or await _calls(http, run["session_id"]) == []:
                run = await until(http, run, "QUEUED", "RUNNING")
        await http.post(f"/api/v1/task-runs/{run['id']}/cancel", json={})
        ended = await until(http, run, *FINAL)
        assert (ended["state"], ended["attempts"][0]["state"]) == ("CANCELLED", "CANCELLED")
        turn_id = ended["attempts"][0]["turn_id"]
        turn = (await http.get(f"/api/v1/sessions/{run['session_id']}/turns/{turn_id}")).json()
        assert turn["state"] == "INTERRUPTED"


async def seen_over_grpc(user: User, run_id: str) -> list[pb.WatchTaskRunResponse]:
    """What a watcher sees until the run is over."""
    watch = SchedulerServiceStub(user.channel).WatchTaskRun
    request = pb.WatchTaskRunRequest(task_run_id=run_id)
    return [response async for response in watch(request, metadata=user.metadata, timeout=60)]


async def seen_by_a_browser(http: httpx.AsyncClient, run_id: str) -> list[pb.WatchTaskRunResponse]:
    """The same by gRPC-Web."""
    raw = pb.WatchTaskRunRequest(task_run_id=run_id).SerializeToString()
    answer = await http.post(
        "/aiagent.scheduler.v1.SchedulerService/WatchTaskRun",
        content=b"\0" + len(raw).to_bytes(4) + raw,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )
    found, body = [], answer.content
    while body[0] == 0:
        size = int.from_bytes(body[1:5])
        found.append(pb.WatchTaskRunResponse.FromString(body[5 : 5 + size]))
        body = body[5 + size :]
    assert b"grpc-status:0" in body.replace(b" ", b"")
    return found


async def seen_as_json(http: httpx.AsyncClient, run_id: str, cursor: int = 0) -> list[dict[str, Any]]:
    """The same as JSON, one document a line."""
    answer = await http.get(f"/api/v1/task-runs/{run_id}/watch", params={"cursor": cursor})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_run_is_watched_to_its_end_and_done_again(suite: RunningSuite, user: User, stranger: User):
    async with user.http() as http, stranger.http() as other:
        script = prompt(use("Bash", command="while ! test -e go; do sleep 0.05; done; exit 0"), say("seen"))
        run = await started(http, script)
        watching = [
            asyncio.create_task(seen)
            for seen in (
                seen_over_grpc(user, run["id"]),
                seen_by_a_browser(http, run["id"]),
                seen_as_json(http, run["id"]),
            )
        ]
        async with asyncio.timeout(30):
            while not run["session_id"] or await _calls(http, run["session_id"]) == []:
                run = await until(http, run, "QUEUED", "RUNNING")
        (suite.state_dir / "workspaces" / run["session_id"] / "go").touch()
        grpc_seen, web_seen, json_seen = await asyncio.gather(*watching)
        for seen in (grpc_seen, web_seen):
            cursors = [response.cursor for response in seen]
            assert cursors == sorted(set(cursors))
            assert len({response.task_run.state for response in seen}) > 1
            assert (seen[-1].task_run.state, seen[-1].task_run.result) == (run_pb2.TaskRun.SUCCEEDED, "seen")
        assert (json_seen[-1]["task_run"]["state"], json_seen[-1]["task_run"]["result"]) == (
            "SUCCEEDED",
            "seen",
        )
        assert await seen_as_json(http, run["id"], int(json_seen[-1]["cursor"])) == []
        assert (await seen_as_json(http, run["id"], 1))[0]["task_run"]["id"] == run["id"]
        hidden = await other.get(f"/api/v1/task-runs/{run['id']}/watch")
        assert (hidden.status_code, hidden.json()["details"][0]["reason"]) == (404, "TASK_RUN_NOT_FOUND")
        refused = await http.post(f"/api/v1/task-runs/{run['id']}/retry", json={})
        assert refused.json()["details"][0]["reason"] == "TASK_RUN_NOT_RETRYABLE"
        failed = await started(http, prompt(use("Bash", command="sleep 60"), say("never")))
        await http.post(f"/api/v1/task-runs/{failed['id']}/cancel", json={})
        assert (await seen_as_json(http, failed["id"]))[-1]["task_run"]["state"] == "CANCELLED"
        again = (await http.post(f"/api/v1/task-runs/{failed['id']}/retry", json={})).json()
        assert (again["retry_of"], again["variables"]) == (failed["id"], failed["variables"])
        await http.post(f"/api/v1/task-runs/{again['id']}/cancel", json={})


async def test_worker_and_scheduler_killed_in_mid_run(in_processes: RunningSuite):
    async with grpc.aio.insecure_channel(in_processes.grpc_target, options=OPTIONS) as channel:
        user = User(in_processes.base_url, channel)
        await user.sign_up()
        async with user.http() as http:
            script = prompt(
                use("Bash", command="while ! test -e go; do sleep 0.05; done"), say("all is well")
            )
            run = await started(http, script)
            async with asyncio.timeout(30):
                while not run["session_id"] or await _calls(http, run["session_id"]) == []:
                    run = await until(http, run, "QUEUED", "RUNNING")
            begun = asyncio.Event()
            seen = asyncio.create_task(watched(user, run["id"], begun))
            await asyncio.wait_for(begun.wait(), 30)
            for name in ("scheduler-worker-1", "scheduler-1"):
                note = in_processes.state_dir / "run" / f"{name}.pid"
                os.kill(int(note.read_text(encoding="utf-8").split()[0]), signal.SIGKILL)
            # The turn ends while nobody follows it.
            (in_processes.state_dir / "workspaces" / run["session_id"] / "go").touch()
            ended = await until(http, run, *FINAL)
            assert (ended["state"], ended["result"], len(ended["attempts"])) == (
                "SUCCEEDED",
                "all is well",
                1,
            )
            assert ended["session_id"] == run["session_id"]
            # Who looked on was told the rest by the next process, and nothing twice.
            states, cursors, lost = await seen
            assert (states[0], states[-1]) == ("RUNNING", "SUCCEEDED")
            assert cursors == sorted(set(cursors))
            assert lost >= 1
            assert await prompts(user, run["session_id"]) == [f"In the attic: {script}"]
            sessions = (await http.get("/api/v1/sessions")).json()["sessions"]
            assert [session["id"] for session in sessions] == [run["session_id"]]


async def watched(user: User, run_id: str, begun: asyncio.Event) -> tuple[list[str], list[int], int]:
    """What the client's watch yields: states, cursors, and how often it had to connect anew."""
    lost: list[Any] = []
    states, cursors = [], []
    async with Client(user.base_url, token=user.access_token) as client:
        watch = client.runs.watch(run_id, on_reconnect=lost.append)
        async for run in watch:
            states.append(run_pb2.TaskRun.State.Name(run.state))
            cursors.append(watch.cursor)
            begun.set()
    return states, cursors, len(lost)


async def _calls(http: httpx.AsyncClient, session_id: str) -> list[Any]:
    """The tool calls of a session that have begun."""
    listed = (await http.get(f"/api/v1/sessions/{session_id}/tool-calls")).json()
    return [call for call in listed["tool_calls"] if call["state"] != "REQUESTED"]
