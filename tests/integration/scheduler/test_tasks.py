"""Tasks: what is given comes back, what is left out is as the contract says, and a change changes what it names."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf import json_format

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import task_pb2
from tests.integration.session.serving import reason

from .serving import Serving, field_of

pytestmark = pytest.mark.integration

EVERYTHING: dict[str, Any] = {
    "name": "Nightly review",
    "prompt_template": "Review {{ repository }}, at most {{ limit }} files.\n",
    "variables": [
        {"name": "repository", "type": "STRING", "description": "Which one.", "required": True},
        {"name": "limit", "type": "INTEGER", "default_value": 20},
        {"name": "paths", "type": "JSON", "default_value": ["src", {"deep": [1.5, None, True]}]},
    ],
    "sdk_options": {"permission_mode": "DONT_ASK", "allowed_tools": ["Read"], "max_turns": 5},
    "labels": {"team": "core"},
    "priority": -7,
    "run_timeout": "90.500s",
    "retry_policy": {
        "maximum_attempts": 5,
        "initial_interval": "2s",
        "backoff_coefficient": 1.5,
        "maximum_interval": "60s",
        "non_retryable_reasons": ["MAX_TURNS"],
    },
    "max_concurrent_runs": 3,
    "run_budget_usd": 0.25,
    "webhook": {"url": "https://example.com:8443/hooks?of=agent", "states": ["FAILED", "TIMED_OUT"]},
}
MINE = {"update_mask", "etag", "request_id", "task_id"}


def request(**changes: Any) -> pb.CreateTaskRequest:
    return json_format.ParseDict({**EVERYTHING, **changes}, pb.CreateTaskRequest())


def change(task: task_pb2.Task, *paths: str, **fields: Any) -> pb.UpdateTaskRequest:
    made = json_format.ParseDict({"task_id": task.id, **fields}, pb.UpdateTaskRequest())
    made.update_mask.paths.extend(paths or fields.keys() - MINE)
    return made


def shown(task: task_pb2.Task) -> dict[str, Any]:
    found = json_format.MessageToDict(task, preserving_proto_field_name=True)
    return {name: value for name, value in found.items() if name in EVERYTHING}


async def test_what_is_given_comes_back(api: Serving) -> None:
    client = api.client()
    created = await client.CreateTask(request())
    assert shown(created) == EVERYTHING
    assert created.user_id == str(client.caller.user_id)
    assert created.organization_id == str(client.caller.organization_id)
    assert created.create_time == created.update_time
    assert await client.get(created.id) == created


async def test_what_is_left_out_is_as_the_contract_says(api: Serving) -> None:
    task = await api.client().task(variables=[{"name": "x"}])
    assert shown(task) == {
        "name": "a task",
        "prompt_template": "Look around.",
        "variables": [{"name": "x", "type": "STRING"}],
        "sdk_options": {"permission_mode": "DEFAULT"},
        "run_timeout": "3600s",
        "retry_policy": {
            "maximum_attempts": 3,
            "initial_interval": "10s",
            "backoff_coefficient": 2.0,
            "maximum_interval": "600s",
        },
    }


@pytest.mark.parametrize("field", sorted(EVERYTHING))
async def test_a_change_changes_what_it_names_alone(api: Serving, field: str) -> None:
    client = api.client()
    names = [{"name": "repository"}, {"name": "limit"}]
    before = await client.task(variables=names)
    after = await client.UpdateTask(change(before, field, **EVERYTHING))
    assert shown(after) == {**shown(before), field: EVERYTHING[field]}
    assert after.etag != before.etag
    assert after.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert await client.get(before.id) == after


def test_every_field_of_a_change_is_tried() -> None:
    assert {field.name for field in pb.UpdateTaskRequest.DESCRIPTOR.fields} - MINE == EVERYTHING.keys()


async def test_a_change_of_what_was_not_seen_is_refused(api: Serving) -> None:
    client = api.client()
    seen = await client.task()
    now = await client.UpdateTask(change(seen, "name", name="other", etag=seen.etag))
    late = change(seen, "name", name="mine", etag=seen.etag)
    assert await reason(client.UpdateTask(late)) == "ABORTED ETAG_MISMATCH"
    gone = pb.DeleteTaskRequest(task_id=seen.id, etag=seen.etag)
    assert await reason(client.DeleteTask(gone)) == "ABORTED ETAG_MISMATCH"
    assert await client.get(seen.id) == now


async def test_what_is_deleted_is_not_there(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id, request_id="once"))
    missing = "NOT_FOUND TASK_NOT_FOUND"
    assert await reason(client.GetTask(pb.GetTaskRequest(task_id=task.id))) == missing
    assert await reason(client.UpdateTask(change(task, "name", name="other"))) == missing
    assert await reason(client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id))) == missing
    await client.DeleteTask(pb.DeleteTaskRequest(task_id=task.id, request_id="once"))
    assert not (await client.ListTasks(pb.ListTasksRequest())).tasks


NAN = {"numberValue": "NaN"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": " "}, "name"),
        ({"webhook": {}}, "webhook.url"),
        ({"webhook": {"url": "https://b\u00fccher.example"}}, "webhook.url"),
        ({"webhook": {"url": "http://127.0.0.1/"}}, "webhook.url"),
        ({"webhook": {"url": "https://example.com", "states": ["RUNNING"]}}, "webhook.states[0]"),
        ({"webhook": {"url": "https://example.com", "states": ["FAILED", "FAILED"]}}, "webhook.states"),
        ({"name": "a\0"}, "name"),
        ({"prompt_template": "\n"}, "prompt_template"),
        ({"prompt_template": "{{ repository"}, "prompt_template"),
        ({"prompt_template": "{{ other }}"}, "prompt_template"),
        ({"prompt_template": "x" * 65_537}, "prompt_template"),
        ({"variables": [{"name": "_st"}]}, "variables[0].name"),
        ({"variables": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "variables[2].name"),
        ({"variables": [{"name": "loop"}]}, "variables[0].name"),
        (
            {"variables": [{"name": "a", "type": "INTEGER", "default_value": "x"}]},
            "variables[0].default_value",
        ),
        ({"variables": [{"name": "a", "default_value": "a\0"}]}, "variables[0].default_value"),
        ({"variables": [{"name": "a", "default_value": "a" * 65_537}]}, "variables[0].default_value"),
        ({"variables": [{"name": f"v{number}"} for number in range(101)]}, "variables"),
        ({"sdk_options": {"output_schema": {"description": "a\0"}}}, "sdk_options.output_schema"),
        ({"sdk_options": {"max_turns": -1}}, "sdk_options.max_turns"),
        ({"labels": {"": "x"}}, 'labels[""]'),
        ({"priority": 101}, "priority"),
        ({"run_timeout": "0.5s"}, "run_timeout"),
        ({"retry_policy": {"maximum_attempts": 101}}, "retry_policy.maximum_attempts"),
        ({"retry_policy": {"backoff_coefficient": 0.5}}, "retry_policy.backoff_coefficient"),
        ({"retry_policy": {"maximum_interval": "5s"}}, "retry_policy.maximum_interval"),
        ({"retry_policy": {"non_retryable_reasons": ["max turns"]}}, "retry_policy.non_retryable_reasons[0]"),
        ({"max_concurrent_runs": -1}, "max_concurrent_runs"),
        ({"run_budget_usd": -0.1}, "run_budget_usd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_breaks_a_rule_is_refused_with_the_field_named(
    api: Serving, fields: dict[str, Any], field: str
) -> None:
    client = api.client()
    assert await field_of(client.CreateTask(request(**fields))) == field
    task = await client.task()
    assert await field_of(client.UpdateTask(change(task, **fields))) == field
    assert await client.get(task.id) == task


async def test_values_that_json_does_not_have_are_refused(api: Serving) -> None:
    client = api.client()
    endless = request()
    endless.variables[1].default_value.number_value = float("inf")
    assert await field_of(client.CreateTask(endless)) == "variables[1].default_value"
    schema = request()
    schema.sdk_options.output_schema["maximum"] = float("nan")
    assert await field_of(client.CreateTask(schema)) == "sdk_options.output_schema"


async def test_a_template_and_its_variables_are_judged_together(api: Serving) -> None:
    client = api.client()
    task = await client.task(variables=[{"name": "a"}], prompt_template="{{ a }}")
    assert await field_of(client.UpdateTask(change(task, prompt_template="{{ b }}"))) == "prompt_template"
    assert await field_of(client.UpdateTask(change(task, variables=[{"name": "b"}]))) == "prompt_template"
    both = change(task, prompt_template="{{ b }}", variables=[{"name": "b"}], request_id="both")
    changed = await client.UpdateTask(both)
    assert (changed.prompt_template, changed.variables[0].name) == ("{{ b }}", "b")
    back = change(task, prompt_template="{{ a }}", variables=[{"name": "a"}])
    await client.UpdateTask(back)
    # Asked once more it answers with the task as it is, and judges nothing anew.
    assert (await client.UpdateTask(both)).prompt_template == "{{ a }}"


@pytest.mark.parametrize("field", ["name", "prompt_template", "run_timeout"])
async def test_what_every_task_has_cannot_be_taken_away(api: Serving, field: str) -> None:
    client = api.client()
    task = await client.task()
    assert await field_of(client.UpdateTask(change(task, field))) == field


async def test_a_mask_is_needed_and_names_fields_of_a_task(api: Serving) -> None:
    client = api.client()
    task = await client.task()
    for mask in ("", "user_id", "retry_policy.maximum_attempts"):
        sent = pb.UpdateTaskRequest(task_id=task.id, update_mask={"paths": [mask] if mask else []})
        if mask:
            assert (await field_of(client.UpdateTask(sent))).startswith("update_mask"), mask
    assert await field_of(client.UpdateTask(pb.UpdateTaskRequest(task_id=task.id))) == "update_mask"


async def test_pages_are_whole_and_in_order(api: Serving) -> None:
    client = api.client()
    made = [(await client.task(name=f"task {number}")).id for number in range(7)]
    await api.client().task(name="somebody else's")
    found: list[str] = []
    token, pages = "", 0
    while True:
        page = await client.ListTasks(pb.ListTasksRequest(page_size=3, page_token=token))
        found += [task.id for task in page.tasks]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert (found, pages) == (made[::-1], 3)
    first = await client.ListTasks(pb.ListTasksRequest(page_size=3))
    other = pb.ListTasksRequest(page_token=first.next_page_token, name_contains="task")
    assert await field_of(client.ListTasks(other)) == "page_token"


async def test_names_are_found_regardless_of_case(api: Serving) -> None:
    client = api.client()
    task = await client.task(name="100% of the Builds")
    await client.task(name="1000 builds")
    for part in ("100%", "THE BUILDS"):
        (found,) = (await client.ListTasks(pb.ListTasksRequest(name_contains=part))).tasks
        assert found.id == task.id


async def test_a_request_id_makes_one_task(api: Serving) -> None:
    client = api.client()
    once = request(request_id=uuid4().hex, labels={str(number): "" for number in range(9)})
    first = await client.CreateTask(once)
    assert await client.CreateTask(once) == first
    reused = request(request_id=once.request_id)
    assert await reason(client.CreateTask(reused)) == "INVALID_ARGUMENT REQUEST_ID_REUSED"
    again = change(first, "name", name="other", request_id="rename")
    renamed = await client.UpdateTask(again)
    assert await client.UpdateTask(again) == renamed
    assert len((await client.ListTasks(pb.ListTasksRequest())).tasks) == 1
