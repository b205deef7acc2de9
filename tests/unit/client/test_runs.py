"""`ai-agent tasks run` and its like, and `client.runs`."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from aiagent.scheduler.v1.task_pb2 import Task, TaskVariable
from aiagent_client import (
    Client,
    ClientError,
    FieldViolation,
    InvalidArgumentError,
    InvalidValueError,
    NotFoundError,
    ScheduleSpec,
    TaskRun,
    TaskRunAttempt,
)
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.terminal import CommandLine

pytestmark = pytest.mark.unit


def review(server: ScriptedServer) -> Task:
    """A task with a variable of each kind that matters here."""
    return server.new_task(
        name="review",
        prompt_template="x",
        variables=[
            TaskVariable(name="repository", type=TaskVariable.STRING),
            TaskVariable(name="limit", type=TaskVariable.INTEGER),
            TaskVariable(name="paths", type=TaskVariable.JSON),
        ],
    )


async def test_values_are_text_or_json(server: ScriptedServer, command: CommandLine) -> None:
    review(server)
    done = await command.run(
        "tasks", "run", "review", "--variable", "repository=7", "--variable", "limit:=5",
        "--variable", 'paths:=["a=b"]', "--variable", "note=:=x", "-o", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (sent,) = server.calls["RunTask"]
    assert MessageToDict(sent.variables) == {
        "repository": "7",
        "limit": 5.0,
        "paths": ["a=b"],
        "note": ":=x",
    }
    assert sent.request_id
    assert done.json["id"] in server.runs


@pytest.mark.parametrize("value", ["limit", "=5", "limit:=many"])
async def test_a_value_that_cannot_be_read_is_wrong_use(
    server: ScriptedServer, command: CommandLine, value: str
) -> None:
    review(server)
    done = await command.run("tasks", "run", "review", "--variable", value)
    assert done.code == 2
    assert "RunTask" not in server.calls


async def test_waiting_for_the_end(server: ScriptedServer, command: CommandLine) -> None:
    review(server)
    server.run_ends = TaskRun(state=TaskRun.SUCCEEDED, result="all is \x1b[31mwell")
    done = await command.run("tasks", "run", "review", "--wait")
    assert (done.code, done.out) == (0, "all is ␛[31mwell\n")
    server.run_ends = TaskRun(state=TaskRun.FAILED)
    server.run_ends.failure.reason = "MODEL_ERROR"
    done = await command.run("tasks", "run", "review", "--wait")
    assert done.code == 1
    assert "MODEL_ERROR" in done.out


async def test_runs_are_listed_shown_and_cancelled(server: ScriptedServer, command: CommandLine) -> None:
    task, other = review(server), server.new_task(name="other", prompt_template="x")
    await command.run("tasks", "run", other.id)
    first = (await command.run("tasks", "run", "review", "--variable", "repository=core", "-o", "json")).json[
        "id"
    ]
    listed = await command.run("tasks", "runs", "review", "--state", "queued", "-o", "json")
    assert [(run["id"], run["task_id"]) for run in listed.json] == [(first, task.id)]
    assert (await command.run("tasks", "runs", "--state", "succeeded")).out == ""
    assert first in (await command.run("tasks", "runs")).out
    run = server.runs[first]
    run.attempts.append(TaskRunAttempt(attempt=1, state=TaskRun.FAILED))
    run.attempts[0].failure.reason = "MODEL_ERROR"
    shown = await command.run("tasks", "run-show", first[:8])
    for text in ('repository = "core"', "queued", "1  failed  MODEL_ERROR"):
        assert text in shown.out
    assert (await command.run("tasks", "cancel", first[-8:])).out == f"cancelled {first}\n"
    run.state = TaskRun.RUNNING
    assert (await command.run("tasks", "cancel", first)).out == f"{first} is being cancelled\n"
    assert (await command.run("tasks", "run-show", "no-such")).code == 1


async def test_what_was_not_looked_through_may_be_there(server: ScriptedServer, command: CommandLine) -> None:
    ids = [f"{number:08x}-0000-7000-8000-00000000000a" for number in range(0x1000, 0x1000 + 5001)]
    server.runs = {key: TaskRun(id=key, state=TaskRun.QUEUED) for key in ids}
    oldest = await command.run("tasks", "run-show", ids[0][:13])
    assert oldest.code == 1
    assert "is not among the newest 5,000" in oldest.err
    assert "give the whole id" in oldest.err
    newest = await command.run("tasks", "run-show", ids[-1][:13])
    assert (newest.code, ids[-1] in newest.err, "give the whole id" in newest.err) == (2, True, True)
    assert (await command.run("tasks", "run-show", ids[0])).code == 0
    # Names are looked up among those alone that have them.
    server.new_task(name="nightly", prompt_template="x")
    for number in range(5001):
        server.kept[f"{number}"] = Task(id=f"{number}", name="other")
    assert (await command.run("tasks", "get", "nightly")).code == 0
    del server.runs[ids[0]]
    assert (await command.run("tasks", "run-show", ids[-1][:13])).code == 0


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (40, ["ID", "STATE", "COST"]),
        (60, ["ID", "STATE", "COST", "CREATED"]),
        (80, ["ID", "STATE", "ATTEMPT", "COST", "CREATED"]),
        (90, ["ID", "STATE", "ATTEMPT", "COST", "CREATED", "FIRE"]),
        (145, ["ID", "STATE", "ATTEMPT", "COST", "CREATED", "FIRE", "TASK"]),
    ],
)
async def test_a_list_of_runs_fits_its_terminal(
    server: ScriptedServer, command: CommandLine, width: int, titles: list[str]
) -> None:
    task = review(server)
    run = TaskRun(id="0198c2f0-0000-7000-8000-00000000000a", task_id=task.id, state=TaskRun.SUCCEEDED)
    run.create_time.FromJsonString("2026-03-29T10:00:00Z")
    run.fire_time.FromJsonString("2026-03-29T10:00:00Z")
    server.runs[run.id] = run
    done = await command.run("tasks", "runs", environment={"COLUMNS": str(width)})
    heading, _, row = done.out.splitlines()
    assert heading.split() == titles
    assert max(len(line) for line in done.out.splitlines()) <= width
    assert row.split()[:2] == [run.id if width > 90 else run.id[:13], "succeeded"]


async def test_the_client_pages_and_waits(server: ScriptedServer, client: Client) -> None:
    task = review(server)
    made = [await client.runs.start(task.id, {"limit": number}) for number in range(5)]
    assert [run.id async for run in client.runs.list(task_id=task.id, page_size=2)] == [
        run.id for run in reversed(made)
    ]
    server.run_ends = TaskRun(state=TaskRun.TIMED_OUT)
    assert (await client.runs.wait(made[0].id, look_seconds=0)).state == TaskRun.TIMED_OUT
    with pytest.raises(NotFoundError):
        await client.runs.get("0198c7a0-5d1e-7c3a-9f00-3b1d2e4f5a6b")


@pytest.mark.parametrize("value", ["\ud800", object(), {"a": {1, 2}}, {1: "x"}, b"x"])
async def test_a_value_that_cannot_be_sent_is_named(
    server: ScriptedServer, client: Client, value: object
) -> None:
    task = review(server)
    spec = ScheduleSpec(cron_expression="@daily")
    for call in (
        client.runs.start(task.id, {"limit": 1, "repository": value}),
        client.schedules.create(task.id, spec, variables={"repository": value}),
        client.schedules.update(task.id, variables={"repository": value}),
    ):
        with pytest.raises(ClientError, match=r"^variables\.repository: ") as refused:
            await call
        assert isinstance(refused.value, InvalidValueError)
        assert refused.value.field == "variables.repository"
    assert not server.runs


async def test_an_error_names_a_fault_once() -> None:
    found = FieldViolation("variables.repository", "is missing", "REQUIRED")
    more = FieldViolation("variables.limit", "must be an integer", "TYPE")
    error = InvalidArgumentError(
        "variables.repository: is missing",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_REQUEST",
        field_violations=(found, more),
    )
    assert str(error) == (
        "INVALID_REQUEST: variables.repository: is missing; variables.limit: must be an integer"
    )
