"""Runs as clients meet them: what makes one, what does not, and what is told of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.identity import Role
from services.scheduler.store.system_queries import HouseKeeping
from services.scheduler.store.tables import runs, tasks
from tests.integration.session.serving import reason, refusal

from .serving import Client, Serving, field_of

pytestmark = pytest.mark.integration
NOW = sa.func.clock_timestamp()
VARIABLES: list[dict[str, Any]] = [
    {"name": "repository", "required": True},
    {"name": "limit", "type": "INTEGER", "default_value": {"number_value": 20}},
    {"name": "note"},
]
TEMPLATE = "Review {{ repository }}, {{ limit }} files.{% if note is defined %} {{ note }}{% endif %}"


def given(**values: Any) -> Any:
    return json_format.ParseDict(values, pb.RunTaskRequest().variables)


async def test_a_run_has_what_its_task_said(api: Serving) -> None:
    client = api.client()
    task = await client.task(prompt_template=TEMPLATE, variables=VARIABLES, priority=7)
    run = await client.run(task.id, variables=given(repository="core"))
    assert (run.task_id, run.user_id, run.state) == (task.id, task.user_id, run_pb2.TaskRun.QUEUED)
    assert (run.attempt, run.priority, dict(run.variables)) == (0, 7, {"repository": "core", "limit": 20})
    assert await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=run.id)) == run
    change = pb.UpdateTaskRequest(
        task_id=task.id, prompt_template="Rest.", update_mask={"paths": ["prompt_template"]}
    )
    await client.UpdateTask(change)
    kept = {str(row["id"]): row["prompt"] for row in await api.rows(runs)}
    assert kept[run.id] == "Review core, 20 files."


@pytest.mark.parametrize(
    ("values", "violations"),
    [
        ({}, {"variables.repository": "MISSING"}),
        (
            {"repository": 5, "limit": "many"},
            {"variables.repository": "WRONG_TYPE", "variables.limit": "WRONG_TYPE"},
        ),
        ({"repository": "core", "repo": "x"}, {"variables.repo": "UNKNOWN"}),
        ({"repository": "core", "limit": 1.5}, {"variables.limit": "WRONG_TYPE"}),
    ],
)
async def test_what_is_wrong_with_variables_is_named(
    api: Serving, values: dict[str, Any], violations: dict[str, str]
) -> None:
    client = api.client()
    task = await client.task(prompt_template=TEMPLATE, variables=VARIABLES)
    error = await refusal(client.run(task.id, variables=given(**values)))
    assert {violation.field: violation.reason for violation in error.violations} == violations
    assert not (await client.ListTaskRuns(pb.ListTaskRunsRequest(task_id=task.id))).task_runs


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ note }}", "UNDEFINED"),
        ("{{ 1 / (repository | length - 4) }}", "FAILED"),
        ("{{ repository.__class__ }}", "FORBIDDEN"),
        ("{% for i in range(99999) %}{{ repository * 999 }}{% endfor %}", "TOO_LONG"),
        ("{% if false %}x{% endif %}", "EMPTY"),
    ],
)
async def test_a_prompt_that_cannot_be_rendered_makes_no_run(api: Serving, template: str, fault: str) -> None:
    client = api.client()
    task = await client.task(prompt_template=template, variables=VARIABLES)
    error = await refusal(client.run(task.id, variables=given(repository="core")))
    assert [(violation.field, violation.reason) for violation in error.violations] == [("variables", fault)]
    assert not (await client.ListTaskRuns(pb.ListTaskRunsRequest(task_id=task.id))).task_runs


async def test_a_repeated_call_makes_no_second_run(api: Serving) -> None:
    client = api.client()
    task = await client.task(prompt_template=TEMPLATE, variables=VARIABLES)
    first = await client.run(task.id, variables=given(repository="core"), request_id="once")
    # Also when the task would refuse it by now.
    change = pb.UpdateTaskRequest(task_id=task.id, variables=[{"name": "repository", "type": "BOOLEAN"}])
    change.prompt_template = "{{ repository }}"
    change.update_mask.paths.extend(["variables", "prompt_template"])
    await client.UpdateTask(change)
    assert await client.run(task.id, variables=given(repository="core"), request_id="once") == first
    again = client.run(task.id, variables=given(repository="other"), request_id="once")
    assert await reason(again) == "INVALID_ARGUMENT REQUEST_ID_REUSED"


async def test_lists_page_by_task_and_state_without_what_is_large(api: Serving) -> None:
    client = api.client()
    task = await client.task(prompt_template=TEMPLATE, variables=VARIABLES)
    made = [await client.run(task.id, variables=given(repository=str(number))) for number in range(3)]
    await client.run()
    await client.CancelTaskRun(pb.CancelTaskRunRequest(task_run_id=made[1].id))
    request = pb.ListTaskRunsRequest(task_id=task.id, states=[run_pb2.TaskRun.QUEUED], page_size=1)
    first = await client.ListTaskRuns(request)
    request.page_token = first.next_page_token
    second = await client.ListTaskRuns(request)
    assert [run.id for run in (*first.task_runs, *second.task_runs)] == [made[2].id, made[0].id]
    assert (second.next_page_token, list(first.task_runs[0].variables)) == ("", [])
    assert len((await client.ListTaskRuns(pb.ListTaskRunsRequest())).task_runs) == 4


async def test_a_run_that_waits_is_cancelled_at_once(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    cancel = pb.CancelTaskRunRequest(task_run_id=run.id, request_id="once")
    ended = await client.CancelTaskRun(cancel)
    assert (ended.state, ended.cancel_requested) == (run_pb2.TaskRun.CANCELLED, True)
    assert ended.HasField("end_time")
    assert await client.CancelTaskRun(cancel) == ended


async def test_what_an_administrator_runs_is_its_owners(api: Serving) -> None:
    owner = api.client()
    task = await owner.task()
    run = await api.colleague(owner, Role.ADMIN).run(task.id)
    assert run.user_id == task.user_id
    assert await _runs_of(owner, task.id) == [run.id]


async def test_runs_outlive_their_task(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    run = await client.run(task.id)
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id))
    found = await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=run.id))
    assert found.state == run_pb2.TaskRun.CANCELLED
    await HouseKeeping(api.database).purge()
    assert await _runs_of(client, task.id) == [run.id]
    await HouseKeeping(api.database, keep_runs=timedelta()).purge()
    assert task.id not in {str(row["id"]) for row in await api.rows(tasks)}
    assert await _runs_of(client, task.id) == []


async def _turned(api: Serving, run_id: str, **values: Any) -> None:
    """Puts a run where a worker or a tick would have."""
    async with api.database.system() as connection:
        await connection.execute(sa.update(runs).where(runs.c.id == UUID(run_id)).values(**values))


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMED_OUT", "SKIPPED"])
async def test_a_run_is_done_again_as_it_was(api: Serving, state: str) -> None:
    client = api.client()
    task = await client.task(prompt_template=TEMPLATE, variables=VARIABLES, priority=7)
    run = await client.run(task.id, variables=given(repository="core"))
    await _turned(
        api, run.id, state=state, attempt=2, end_time=NOW, failure_reason="MODEL_ERROR", failure_message="x"
    )
    # What the task says by now is another matter.
    change = pb.UpdateTaskRequest(task_id=task.id, prompt_template="Rest.", priority=1)
    change.update_mask.paths.extend(["prompt_template", "priority"])
    await client.UpdateTask(change)
    retry = pb.RetryTaskRunRequest(task_run_id=run.id, request_id="once")
    again = await client.RetryTaskRun(retry)
    assert (again.retry_of, again.task_id, again.user_id) == (run.id, run.task_id, run.user_id)
    assert (again.state, again.attempt, again.priority) == (run_pb2.TaskRun.QUEUED, 0, 7)
    assert again.variables == run.variables
    assert not (again.HasField("failure") or again.HasField("end_time"))
    assert {row["prompt"] for row in await api.rows(runs) if str(row["id"]) in (run.id, again.id)} == {
        "Review core, 20 files."
    }
    assert await client.RetryTaskRun(retry) == again
    assert await _runs_of(client, task.id) == [again.id, run.id]


async def test_there_must_be_something_to_do_again(api: Serving) -> None:
    client = api.client()
    run = await client.run()
    retry = pb.RetryTaskRunRequest(task_run_id=run.id)
    running = {"state": "RUNNING", "lease_expire_time": NOW}
    over = {"state": "SUCCEEDED", "lease_expire_time": None, "end_time": NOW}
    for values, expected in (({}, "QUEUED"), (running, "RUNNING"), (over, "SUCCEEDED")):
        if values:
            await _turned(api, run.id, **values)
        error = await refusal(client.RetryTaskRun(retry))
        assert (error.kind.value, error.reason) == ("FAILED_PRECONDITION", "TASK_RUN_NOT_RETRYABLE")
        assert error.metadata["state"] == expected
    # One that failed because its prompt could not be rendered has none.
    await _turned(api, run.id, state="FAILED", prompt="")
    assert await reason(client.RetryTaskRun(retry)) == "FAILED_PRECONDITION TASK_RUN_NOT_RETRYABLE"
    await _turned(api, run.id, prompt="Look around.")
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=run.task_id))
    assert await reason(client.RetryTaskRun(retry)) == "NOT_FOUND TASK_NOT_FOUND"
    assert await _runs_of(client, run.task_id) == [run.id]


async def test_lists_hold_the_runs_of_a_schedule_or_a_backfill(api: Serving) -> None:
    client = api.client()
    schedule = await client.schedule()
    backfill = uuid4()
    made = [(await client.run(schedule.task_id)).id for _ in range(3)]
    fire = datetime(2030, 1, 1, 9, tzinfo=UTC)
    of_schedule = {"schedule_id": UUID(schedule.id), "fire_time": fire, "due_time": fire}
    await _turned(api, made[0], **of_schedule)
    skipped = {"state": "SKIPPED", "skip_reason": "BUFFER_FULL", "end_time": NOW}
    await _turned(api, made[1], **of_schedule, **skipped, backfill_id=backfill)
    listed = await client.ListTaskRuns(pb.ListTaskRunsRequest(schedule_id=schedule.id))
    assert [run.id for run in listed.task_runs] == [made[1], made[0]]
    (found,) = (await client.ListTaskRuns(pb.ListTaskRunsRequest(backfill_id=str(backfill)))).task_runs
    assert (found.id, found.backfill_id, found.schedule_id) == (made[1], str(backfill), schedule.id)
    assert found.skip_reason == run_pb2.TaskRun.BUFFER_FULL
    assert found.due_time.ToDatetime(UTC) == fire
    request = pb.ListTaskRunsRequest(schedule_id=schedule.id, page_size=1)
    request.page_token = (await client.ListTaskRuns(request)).next_page_token
    request.schedule_id = ""
    assert await field_of(client.ListTaskRuns(request)) == "page_token"
    other = await client.ListTaskRuns(pb.ListTaskRunsRequest(schedule_id=(await client.schedule()).id))
    assert not other.task_runs


async def _runs_of(client: Client, task_id: str) -> list[str]:
    listed = await client.ListTaskRuns(pb.ListTaskRunsRequest(task_id=task_id))
    return [run.id for run in listed.task_runs]
