"""Runs as clients meet them: what makes one, what does not, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from aiagent.scheduler.v1 import run_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.identity import Role
from services.scheduler.store.system_queries import HouseKeeping
from services.scheduler.store.tables import runs, tasks
from tests.integration.session.serving import reason, refusal

from .serving import Client, Serving

pytestmark = pytest.mark.integration
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


async def test_runs_go_with_their_task(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    run = await client.run(task.id)
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id))
    found = await client.GetTaskRun(pb.GetTaskRunRequest(task_run_id=run.id))
    assert found.state == run_pb2.TaskRun.CANCELLED
    await HouseKeeping(api.database).purge()
    assert task.id not in {str(row["id"]) for row in await api.rows(tasks)}
    assert await _runs_of(client, task.id) == []


async def _runs_of(client: Client, task_id: str) -> list[str]:
    listed = await client.ListTaskRuns(pb.ListTaskRunsRequest(task_id=task_id))
    return [run.id for run in listed.task_runs]
