"""`client.runs.watch`, and what `ai-agent tasks watch` makes of it."""

from __future__ import annotations

import random
import re
from typing import Any

import grpc
import pytest

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent_client import Client, NotFoundError, ResourceExhaustedError, TaskRun, TaskRunAttempt, resuming
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.scripted_session import Fault
from tests.unit.client.terminal import CommandLine
from tests.unit.client.test_watching import RESUMABLE

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "backoff", lambda attempt, at_least=None: 0.01)


def attempt(number: int, **fields: object) -> TaskRunAttempt:
    """An attempt that began at ten."""
    made = TaskRunAttempt(attempt=number, **{"state": TaskRun.RUNNING, **fields})  # type: ignore[arg-type]
    made.start_time.FromJsonString(f"2026-03-29T10:00:0{number}Z")
    return made


def a_run(server: ScriptedServer, *changes: TaskRun) -> str:
    """A run that goes through these changes."""
    task = server.new_task(name="nightly", prompt_template="x")
    run = TaskRun(id="0198c2f0-0000-7000-8000-00000000000a", task_id=task.id)
    run.start_time.FromJsonString("2026-03-29T10:00:01Z")
    server.runs[run.id] = run
    server.run_changes = list(changes)
    return run.id


def story(end: TaskRun) -> list[TaskRun]:
    """A first attempt that fails, a second one, and an end."""
    first = attempt(1, session_id="0198c2f0-0000-7000-8000-000000000001")
    failed = TaskRun(state=TaskRun.QUEUED)
    end.attempt = 2
    end.attempts.append(attempt(2))
    end.end_time.FromJsonString("2026-03-29T10:01:14Z")
    return [
        TaskRun(state=TaskRun.QUEUED),
        TaskRun(state=TaskRun.RUNNING, attempt=1, attempts=[first]),
        failed,
        end,
    ]


@pytest.mark.parametrize("seed", range(6))
async def test_each_change_comes_once_whatever_ends_the_connection(
    server: ScriptedServer, client: Client, seed: int
) -> None:
    chance = random.Random(seed)
    changes = [TaskRun(state=TaskRun.RUNNING, attempt=number) for number in range(1, 12)]
    run_id = a_run(server, *changes, TaskRun(state=TaskRun.SUCCEEDED, attempt=12))
    for _ in range(8):
        fault = chance.choice(RESUMABLE)
        server.faults["WatchTaskRun"].append(
            Fault(fault.code, fault.reason, fault.message, after=chance.randint(1, 2))
        )
    watch = client.runs.watch(run_id)
    seen = [(run.attempt, watch.cursor) async for run in watch]
    assert seen == [(number, number) for number in range(1, 13)]
    cursors = [request.cursor for request in server.calls["WatchTaskRun"]]
    assert cursors == sorted(cursors)
    # The first sends none, each later one what was seen by then.
    assert len(set(cursors)) > 4


@pytest.mark.parametrize("cursor", range(4))
async def test_it_goes_on_from_a_stored_cursor(server: ScriptedServer, client: Client, cursor: int) -> None:
    run_id = a_run(
        server,
        TaskRun(state=TaskRun.QUEUED),
        TaskRun(state=TaskRun.RUNNING),
        TaskRun(state=TaskRun.SUCCEEDED),
    )
    watch = client.runs.watch(run_id, cursor=cursor)
    assert [watch.cursor async for _ in watch] == list(range(cursor + 1, 4))


async def test_a_stream_that_ends_before_the_run_is_opened_anew(
    server: ScriptedServer, client: Client
) -> None:
    run_id = a_run(server, TaskRun(state=TaskRun.RUNNING), TaskRun(state=TaskRun.SUCCEEDED))
    # As a proxy may: cut off without a word.
    server.faults["WatchTaskRun"] = [Fault(grpc.StatusCode.OK, after=1)]
    assert [run.state async for run in client.runs.watch(run_id)] == [TaskRun.RUNNING, TaskRun.SUCCEEDED]


async def test_what_a_server_repeats_comes_once(client: Client) -> None:
    watch = client.runs.watch("a run")

    class Repeating:
        async def stream(self, open_call: Any, silence: float) -> Any:
            for cursor, state in ((1, TaskRun.RUNNING), (1, TaskRun.RUNNING), (2, TaskRun.SUCCEEDED)):
                yield pb.WatchTaskRunResponse(task_run=TaskRun(state=state), cursor=cursor)

    watch._connection = Repeating()  # type: ignore[assignment]
    assert [run.state async for run in watch] == [TaskRun.RUNNING, TaskRun.SUCCEEDED]


async def test_what_resuming_cannot_mend_is_raised(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(NotFoundError):
        await anext(client.runs.watch("0198c2f0-0000-7000-8000-00000000000b"))
    run_id = a_run(server, TaskRun(state=TaskRun.RUNNING))
    server.faults["WatchTaskRun"] = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")]
    with pytest.raises(ResourceExhaustedError):
        await anext(client.runs.watch(run_id))
    server.faults["WatchTaskRun"] = [Fault(grpc.StatusCode.NOT_FOUND, "TASK_RUN_NOT_FOUND", after=1)]
    watch = client.runs.watch(run_id)
    await anext(watch)
    with pytest.raises(NotFoundError):
        await anext(watch)


def told(text: str) -> list[str]:
    """The lines without their times."""
    return [re.sub(r"^(\d\d:\d\d:\d\d)? +", "", line) for line in text.splitlines()]


async def test_the_story_of_a_run_that_succeeds(server: ScriptedServer, command: CommandLine) -> None:
    end = TaskRun(state=TaskRun.SUCCEEDED, result="all is \x1b[31mwell", cost_usd=0.0123)
    run_id = a_run(server, *story(end))
    done = await command.run("tasks", "watch", run_id[:8])
    assert (done.code, done.out) == (0, "all is ␛[31mwell\n")
    assert told(done.err) == [
        f"run {run_id}",
        "queued     waits for a worker",
        "running    attempt 1",
        "session 0198c2f0-0000-7000-8000-000000000001",
        "queued     waits for attempt 2",
        "running    attempt 2",
        "succeeded  after 1 min 13 s, 2 attempts, $0.0123",
    ]


async def test_who_comes_late_hears_the_whole_story(server: ScriptedServer, command: CommandLine) -> None:
    first = attempt(1, state=TaskRun.FAILED)
    first.failure.reason, first.failure.message = "MODEL_ERROR", "over\nloaded \x07"
    end = TaskRun(state=TaskRun.FAILED, attempt=2, attempts=[first, attempt(2, state=TaskRun.FAILED)])
    end.failure.reason, end.failure.message = "BUDGET_EXCEEDED", "no money"
    end.end_time.FromJsonString("2026-03-29T10:00:09Z")
    done = await command.run("tasks", "watch", a_run(server, end))
    assert (done.code, done.out) == (1, "")
    assert told(done.err)[1:] == [
        "running    attempt 1",
        "failed     MODEL_ERROR: over loaded ␇",
        "running    attempt 2",
        "failed     BUDGET_EXCEEDED: no money, after 8.0 s, 2 attempts",
    ]


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (TaskRun(state=TaskRun.CANCELLED, cancel_requested=True), "cancelled  after 8.0 s"),
        (
            TaskRun(state=TaskRun.SKIPPED, skip_reason=TaskRun.BUFFER_FULL),
            "skipped    buffer full, after 8.0 s",
        ),
    ],
)
async def test_other_ends_are_1(
    server: ScriptedServer, command: CommandLine, end: TaskRun, line: str
) -> None:
    end.end_time.FromJsonString("2026-03-29T10:00:09Z")
    done = await command.run("tasks", "watch", a_run(server, end))
    assert (done.code, done.out, told(done.err)[-1]) == (1, "", line)


async def test_programs_get_a_line_for_each_change(server: ScriptedServer, command: CommandLine) -> None:
    run_id = a_run(server, *story(TaskRun(state=TaskRun.FAILED)))
    done = await command.run("tasks", "watch", run_id, "-o", "json")
    assert (done.code, done.err) == (1, "")
    assert [run["state"] for run in done.lines] == ["QUEUED", "RUNNING", "QUEUED", "FAILED"]
    assert {run["id"] for run in done.lines} == {run_id}


async def test_a_new_run_and_a_retry_are_watched(server: ScriptedServer, command: CommandLine) -> None:
    a_run(server, TaskRun(state=TaskRun.FAILED))
    ran = await command.run("tasks", "run", "nightly", "--watch", "-o", "json")
    assert (ran.code, [run["state"] for run in ran.lines]) == (1, ["FAILED"])
    run_id = ran.lines[0]["id"]
    server.run_changes = [TaskRun(state=TaskRun.SUCCEEDED, result="well")]
    again = await command.run("tasks", "retry", run_id, "--watch")
    assert (again.code, again.out) == (0, "well\n")
    shown = await command.run("tasks", "retry", run_id, "-o", "json")
    assert (shown.json["state"], shown.json["retry_of"]) == ("QUEUED", run_id)
    assert [call.task_run_id for call in server.calls["RetryTaskRun"]] == [run_id] * 2
    assert all(call.request_id for call in server.calls["RetryTaskRun"])


async def test_control_c_leaves_the_run_alone(server: ScriptedServer, command: CommandLine) -> None:
    run_id = a_run(server, TaskRun(state=TaskRun.RUNNING, attempt=1, attempts=[attempt(1)]))
    terminal = await command.open("tasks", "watch", run_id)
    try:
        await terminal.until("attempt 1")
        assert await terminal.leave() == 130
        assert f"left; the run goes on. `ai-agent tasks watch {run_id}`" in terminal.shown.replace("\n", "")
    finally:
        await terminal.close()
    assert "CancelTaskRun" not in server.calls


async def test_control_c_leaves_a_run_that_is_waited_for(
    server: ScriptedServer, command: CommandLine
) -> None:
    server.new_task(name="nightly", prompt_template="x")
    server.run_ends = TaskRun(state=TaskRun.RUNNING)
    terminal = await command.open("tasks", "run", "nightly", "--wait")
    try:
        await terminal.until("running")
        assert await terminal.leave() == 130
        (run_id,) = server.runs
        assert f"left; the run goes on. `ai-agent tasks watch {run_id}`" in terminal.shown.replace("\n", "")
    finally:
        await terminal.close()
    assert "CancelTaskRun" not in server.calls
