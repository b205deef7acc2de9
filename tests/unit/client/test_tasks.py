"""`ai-agent tasks` and `client.tasks`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner

from aiagent.scheduler.v1.task_pb2 import RetryPolicy
from aiagent.session.v1.agent_options_pb2 import AgentOptions
from aiagent_client import Client
from aiagent_client.cli import app
from aiagent_client.cli.arguments import time_span
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.terminal import CommandLine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "nightly"],
        ["create", "nightly", "-p", "x", "--variable", "1st"],
        ["create", "nightly", "-p", "x", "--variable", "a:date"],
        ["create", "nightly", "-p", "x", "--variable", "a:integer=many"],
        ["create", "nightly", "-p", "x", "--timeout", "soon"],
        ["create", "nightly", "-p", "x", "--timeout", f"{'9' * 30}d"],
        ["create", "nightly", "-p", "x", "--priority", "101"],
        ["create", "nightly", "-p", "x", "--allowed-tool", "Bash("],
        ["update", "nightly", "--max-attempts", "0"],
        ["get"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_2(tmp_path: Path, arguments: list[str]) -> None:
    environment = {"AIAGENT_CONFIG_DIR": str(tmp_path)}
    result = CliRunner().invoke(app, ["tasks", *arguments], env=environment, input="")
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2 H", 7200), ("1d", 86400)]
)
def test_time_spans(text: str, seconds: int) -> None:
    assert time_span("--timeout", text) == timedelta(seconds=seconds)


async def test_tasks_from_creation_to_deletion(
    server: ScriptedServer, command: CommandLine, tmp_path: Path
) -> None:
    template = tmp_path / "review.txt"
    template.write_text("Review {{ repository }}.\n")
    created = await command.run(
        "tasks", "create", "nightly", "-p", f"@{template}", "--variable", "repository", "--variable", "note?",
        "--variable", "limit:integer=20", "--variable", "branch=main", "--allowed-tool", "Read", "--timeout", "30m",
        "--permission-mode", "dont-ask", "--max-turns", "7", "--label", "team=x", "--priority", "5",
        "--max-attempts", "2", "--max-concurrent-runs", "1", "--run-budget-usd", "1.5", "-o", "json",
    )  # fmt: skip
    assert created.code == 0, created.err
    sent = MessageToDict(server.calls["CreateTask"][0], preserving_proto_field_name=True)
    assert sent.pop("request_id")
    assert sent == {
        "name": "nightly",
        "prompt_template": "Review {{ repository }}.\n",
        "variables": [
            {"name": "repository", "type": "STRING", "required": True},
            {"name": "note", "type": "STRING"},
            {"name": "limit", "type": "INTEGER", "default_value": 20.0},
            {"name": "branch", "type": "STRING", "default_value": "main"},
        ],
        "sdk_options": {"allowed_tools": ["Read"], "permission_mode": "DONT_ASK", "max_turns": 7},
        "labels": {"team": "x"},
        "priority": 5,
        "run_timeout": "1800s",
        "retry_policy": {"maximum_attempts": 2},
        "max_concurrent_runs": 1,
        "run_budget_usd": 1.5,
    }
    identity = created.json["id"]
    server.new_task(name="evil \x1b[31m[bold]name", prompt_template="x")
    listed = await command.run("tasks", "list")
    assert identity in listed.out
    assert "[bold]name" in listed.out
    assert "\x1b" not in listed.out
    for meant in (identity, identity[:8], identity[-8:], "nightly"):
        assert (await command.run("tasks", "get", meant, "-o", "json")).json["id"] == identity, meant
    shown = await command.run("tasks", "get", "nightly")
    for text in ("limit: integer = 20", "repository: string, required", "30 min 0 s", "$1.50", "1 run"):
        assert text in shown.out
    assert (await command.run("tasks", "get", "no-such")).code == 1
    assert (await command.run("tasks", "delete", "nightly")).code == 2
    assert (await command.run("tasks", "delete", "nightly", "--yes")).out == f"deleted {identity}\n"
    assert identity not in server.kept


async def test_an_update_changes_what_is_given_and_keeps_the_rest(
    server: ScriptedServer, command: CommandLine
) -> None:
    options = AgentOptions(model="claude-opus-4", allowed_tools=["Read"], system_prompt="Be brief.")
    policy = RetryPolicy(non_retryable_reasons=["MAX_TURNS"])
    task = server.new_task(
        name="nightly", prompt_template="x", sdk_options=options, retry_policy=policy, labels={"team": "x"}
    )
    done = await command.run(
        "tasks", "update", "nightly", "--allowed-tool", "Grep", "--max-attempts", "1", "--priority", "0"
    )
    assert done.code == 0, done.err
    (sent,) = server.calls["UpdateTask"]
    assert set(sent.update_mask.paths) == {"sdk_options", "retry_policy", "priority"}
    assert sent.etag == '"1"'
    kept = server.kept[task.id]
    assert MessageToDict(kept.sdk_options) == {
        "model": "claude-opus-4",
        "allowedTools": ["Grep"],
        "systemPrompt": "Be brief.",
    }
    assert (kept.retry_policy.maximum_attempts, list(kept.retry_policy.non_retryable_reasons)) == (
        1,
        ["MAX_TURNS"],
    )
    assert dict(kept.labels) == {"team": "x"}
    nothing = await command.run("tasks", "update", "nightly")
    assert (nothing.code, len(server.calls["UpdateTask"])) == (2, 1)


async def test_the_client_pages_and_sends_what_it_is_given(server: ScriptedServer, client: Client) -> None:
    for number in range(5):
        server.new_task(name=f"task {number}", prompt_template="x")
    names = [task.name async for task in client.tasks.list(page_size=2)]
    assert names == [f"task {number}" for number in reversed(range(5))]
    assert len(server.calls["ListTasks"]) == 3
    made = await client.tasks.create("mine", "Do it.", run_timeout=timedelta(minutes=2))
    assert made.run_timeout.seconds == 120
    changed = await client.tasks.update(made.id, name="ours", labels={}, run_timeout=timedelta(seconds=5))
    (sent,) = server.calls["UpdateTask"]
    assert set(sent.update_mask.paths) == {"name", "labels", "run_timeout"}
    assert (changed.name, changed.run_timeout.seconds, changed.prompt_template) == ("ours", 5, "Do it.")
    await client.tasks.delete(made.id)
    assert made.id not in server.kept
