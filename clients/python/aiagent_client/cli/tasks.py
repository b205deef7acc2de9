"""`ai-agent tasks`: make, list, show, change, delete and run tasks."""

from __future__ import annotations

from inspect import getdoc
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.text import Text

from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent.scheduler.v1.task_pb2 import RetryPolicy, Task, TaskVariable
from aiagent.scheduler.v1.webhook_pb2 import Webhook
from aiagent.session.v1.agent_options_pb2 import AgentOptions
from aiagent_client.cli.arguments import labels, rules, text_or_file, time_span, variables
from aiagent_client.cli.choices import PermissionModeName, ToldStateName, number_of
from aiagent_client.cli.context import Invocation, Output, TaskArgument
from aiagent_client.cli.failures import UsageError
from aiagent_client.cli.lookup import task_id
from aiagent_client.cli.output import facts, local_time, plain, when, word
from aiagent_client.cli.runs import app as runs
from aiagent_client.cli.schedules import app as schedules
from aiagent_client.cli.tables import Column, fitted
from aiagent_client.cli.text import count_of, duration, json_text, money, one_line
from aiagent_client.client import Client

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", help="What the agent is told, or @FILE: a Jinja2 template.", show_default=False
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--variable",
        help="One of the template's: NAME, NAME?, NAME:TYPE or NAME:TYPE=DEFAULT; repeatable.",
        show_default=False,
    ),
]
Model = Annotated[str | None, typer.Option(help="The model.", show_default=False)]
PermissionMode = Annotated[
    PermissionModeName | None,
    typer.Option(help="How tool calls are decided that no list names.", show_default=False),
]
AllowedTools = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-tool",
        help="Runs without a question, as Bash or 'Bash(git log:*)'; repeatable.",
        show_default=False,
    ),
]
DisallowedTools = Annotated[
    list[str] | None,
    typer.Option("--disallowed-tool", help="Never runs; repeatable.", show_default=False),
]
SystemPrompt = Annotated[
    str | None, typer.Option(help="Instructions for the agent, or @FILE.", show_default=False)
]
MaxTurns = Annotated[
    int | None,
    typer.Option(min=0, max=10_000, help="Model calls a run may take; 0: any.", show_default=False),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="A label, KEY=VALUE; repeatable.", show_default=False),
]
Priority = Annotated[
    int | None,
    typer.Option(min=-100, max=100, help="Of its runs, the higher the sooner.", show_default=False),
]
Timeout = Annotated[
    str | None, typer.Option(help="How long a run may take: 90s, 30m, 2h.", show_default=False)
]
MaxAttempts = Annotated[
    int | None, typer.Option(min=1, max=100, help="Attempts of a run in all.", show_default=False)
]
MaxConcurrentRuns = Annotated[
    int | None, typer.Option(min=0, max=1000, help="Runs at once; 0: any.", show_default=False)
]
RunBudget = Annotated[
    float | None,
    typer.Option(
        "--run-budget-usd",
        min=0,
        max=1_000_000,
        help="US dollars a run may spend; 0: any.",
        show_default=False,
    ),
]
WebhookUrl = Annotated[
    str | None,
    typer.Option("--webhook", help="The URL to tell when a run ends; '' for none.", show_default=False),
]
WebhookStates = Annotated[
    list[ToldStateName] | None,
    typer.Option("--webhook-state", help="Tell of this end only; repeatable.", show_default=False),
]

_OF_SCHEDULES = {"preview", "pause", "resume", "backfill", "backfills", "cancel-backfill"}

app = typer.Typer(no_args_is_help=True, help="Tasks: work for agents that is done again and again.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it.", show_default=False)],
    prompt: Prompt = None,
    variable: Variables = None,
    model: Model = None,
    permission_mode: PermissionMode = None,
    allowed_tool: AllowedTools = None,
    disallowed_tool: DisallowedTools = None,
    system_prompt: SystemPrompt = None,
    max_turns: MaxTurns = None,
    label: Labels = None,
    priority: Priority = None,
    timeout: Timeout = None,
    max_attempts: MaxAttempts = None,
    max_concurrent_runs: MaxConcurrentRuns = None,
    run_budget_usd: RunBudget = None,
    webhook: WebhookUrl = None,
    webhook_state: WebhookStates = None,
    output: Output = None,
) -> None:
    """Create a task. A variable without a default must be given to each run, unless its name ends with a ?.

    \b
    Examples:
      ai-agent tasks create nightly --prompt "Review what changed since yesterday."
      ai-agent tasks create review -p @review.txt --variable repository --variable limit:integer=20
      ai-agent tasks create tidy -p "Tidy up." --permission-mode dont-ask --allowed-tool Read --timeout 30m
    """
    invocation = Invocation.of(context, output)
    if prompt is None:
        raise typer.BadParameter("say what the agent is told", param_hint="--prompt")
    template = prompt
    given = variables("--variable", variable)
    span = time_span("--timeout", timeout) if timeout is not None else None
    changed = _options(model, permission_mode, allowed_tool, disallowed_tool, max_turns=max_turns)

    async def work(client: Client) -> None:
        options = AgentOptions()
        _change(options, changed, system_prompt)
        with invocation.busy("creating the task"):
            task = await client.tasks.create(
                name,
                text_or_file(template),
                variables=given,
                sdk_options=options,
                labels=labels(label),
                priority=priority or 0,
                run_timeout=span,
                retry_policy=RetryPolicy(maximum_attempts=max_attempts or 0),
                max_concurrent_runs=max_concurrent_runs or 0,
                run_budget_usd=run_budget_usd or 0.0,
                webhook=_webhook(webhook or "", webhook_state) if webhook or webhook_state else None,
            )
        invocation.result(task, lambda: _task(task))

    invocation.run(work)


@app.command("list")
def list_tasks(
    context: typer.Context,
    name: Annotated[
        str, typer.Option("--name", "-n", help="Only if the name contains this.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="At most so many; 0: all.")] = 50,
    output: Output = None,
) -> None:
    """List your tasks, the newest first.

    \b
    Examples:
      ai-agent tasks list
      ai-agent tasks list --name review -o json | jq -r '.[].id'
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        found: list[Task] = []
        more = False
        with invocation.busy("asking"):
            page_size = min(1000, limit + 1) if limit else 1000
            async for task in client.tasks.list(name_contains=name, page_size=page_size):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(task)
        if not found and not invocation.as_json:
            invocation.notes.print("no tasks", style="dim")
            return
        invocation.result(found, lambda: _tasks(found, invocation.out.width))
        if more:
            invocation.notes.print(f"there are more than {limit}; --limit 0 shows all", style="dim")

    invocation.run(work)


@app.command()
def get(context: typer.Context, task: TaskArgument, output: Output = None) -> None:
    """Show one task.

    \b
    Examples:
      ai-agent tasks get nightly
      ai-agent tasks get 0198c2f0 -o json
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.tasks.get(await task_id(client, task))
        invocation.result(found, lambda: _task(found))

    invocation.run(work)


@app.command()
def update(
    context: typer.Context,
    task: TaskArgument,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The new name.", show_default=False)
    ] = None,
    prompt: Prompt = None,
    variable: Variables = None,
    model: Model = None,
    permission_mode: PermissionMode = None,
    allowed_tool: AllowedTools = None,
    disallowed_tool: DisallowedTools = None,
    system_prompt: SystemPrompt = None,
    max_turns: MaxTurns = None,
    label: Labels = None,
    priority: Priority = None,
    timeout: Timeout = None,
    max_attempts: MaxAttempts = None,
    max_concurrent_runs: MaxConcurrentRuns = None,
    run_budget_usd: RunBudget = None,
    webhook: WebhookUrl = None,
    webhook_state: WebhookStates = None,
    output: Output = None,
) -> None:
    """Change what is given of a task. Variables, labels and lists of tools that are given replace those there were.

    \b
    Examples:
      ai-agent tasks update nightly --timeout 1h --priority 10
      ai-agent tasks update review --prompt @review.txt --variable repository
    """
    invocation = Invocation.of(context, output)
    given = variables("--variable", variable)
    span = time_span("--timeout", timeout) if timeout is not None else None
    changed = _options(model, permission_mode, allowed_tool, disallowed_tool, max_turns=max_turns)
    changes: dict[str, Any] = {
        "name": name,
        "variables": given or None,
        "priority": priority,
        "run_timeout": span,
        "max_concurrent_runs": max_concurrent_runs,
        "run_budget_usd": run_budget_usd,
    }

    async def work(client: Client) -> None:
        changes["prompt_template"] = text_or_file(prompt) if prompt is not None else None
        changes["labels"] = labels(label) or None
        with invocation.busy("changing the task"):
            before = await client.tasks.get(await task_id(client, task))
            if changed or system_prompt is not None:
                _change(before.sdk_options, changed, system_prompt)
                changes["sdk_options"] = before.sdk_options
            if max_attempts is not None:
                before.retry_policy.maximum_attempts = max_attempts
                changes["retry_policy"] = before.retry_policy
            if webhook is not None or webhook_state:
                changes["webhook"] = _webhook(
                    before.webhook.url if webhook is None else webhook, webhook_state
                )
            if not any(value is not None for value in changes.values()):
                raise UsageError("say what to change")
            # What was read and is sent back in part must not undo another one's change.
            after = await client.tasks.update(before.id, etag=before.etag, **changes)
        invocation.result(after, lambda: _task(after))

    invocation.run(work)


@app.command()
def delete(
    context: typer.Context,
    task: TaskArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = None,
) -> None:
    """Delete a task.

    \b
    Example:
      ai-agent tasks delete nightly --yes
    """
    invocation = Invocation.of(context, output)

    async def find(client: Client) -> Task:
        return await client.tasks.get(await task_id(client, task))

    found = invocation.run(find)
    if not yes:
        with invocation.guarded():
            if not invocation.interactive:
                raise UsageError("no terminal to ask on: give --yes")
        typer.confirm(f"Delete {one_line(found.name)} ({found.id})?", abort=True, err=True)

    async def work(client: Client) -> None:
        with invocation.busy("deleting"):
            await client.tasks.delete(found.id)
        invocation.result({"id": found.id, "deleted": True}, lambda: f"deleted {found.id}")

    invocation.run(work)


app.registered_commands += runs.registered_commands
# When a task runs is said here as well as by `ai-agent schedules`, in the same words.
for _command in schedules.registered_commands:
    _name = _command.name or getattr(_command.callback, "__name__", "")
    if _name in _OF_SCHEDULES:
        _help = (getdoc(_command.callback) or "").replace("ai-agent schedules", "ai-agent tasks")
        app.command(_name, help=_help)(_command.callback)  # type: ignore[type-var]  # all have one


def _options(
    model: str | None,
    permission_mode: PermissionModeName | None,
    allowed_tool: list[str] | None,
    disallowed_tool: list[str] | None,
    *,
    max_turns: int | None,
) -> dict[str, Any]:
    """Returns what of the agent's options was given, by field."""
    given: dict[str, Any] = {
        "model": model,
        "permission_mode": number_of(AgentOptions.PermissionMode, permission_mode)
        if permission_mode
        else None,
        "allowed_tools": rules("--allowed-tool", allowed_tool) or None,
        "disallowed_tools": rules("--disallowed-tool", disallowed_tool) or None,
        "max_turns": max_turns,
    }
    return {field: value for field, value in given.items() if value is not None}


def _webhook(url: str, states: list[ToldStateName] | None) -> Webhook:
    if states and not url:
        raise UsageError("there is no webhook to tell of some ends: give --webhook")
    return Webhook(url=url, states=[number_of(TaskRun.State, state) for state in states or []])


def _change(options: AgentOptions, changed: dict[str, Any], system_prompt: str | None) -> None:
    for field, value in changed.items():
        options.ClearField(field)  # type: ignore[arg-type]  # of a list, its entries
        options.MergeFrom(AgentOptions(**{field: value}))
    if system_prompt is not None:
        options.system_prompt = text_or_file(system_prompt)


def _tasks(found: list[Task], width: int) -> Text:
    return fitted(
        [
            Column("ID", "id"),
            Column("NAME", "text"),
            Column("PRIORITY", right=True),
            Column("CREATED", spare=1),
        ],
        [
            (
                task.id,
                plain(task.name, 60),
                str(task.priority),
                when(task.create_time),
            )
            for task in found
        ],
        width,
    )


def _task(task: Task) -> Any:
    options, policy = task.sdk_options, task.retry_policy
    rows: list[tuple[str, Text | str]] = [
        ("id", task.id),
        ("name", plain(task.name)),
        ("prompt", plain(task.prompt_template, 400)),
        *[("variable", _variable(variable)) for variable in task.variables],
        ("model", options.model or "the server's default"),
        ("permission mode", word(AgentOptions.PermissionMode, options.permission_mode)),
        ("allowed tools", ", ".join(options.allowed_tools)),
        ("disallowed tools", ", ".join(options.disallowed_tools)),
        ("priority", str(task.priority) if task.priority else ""),
        ("run timeout", duration(task.run_timeout.ToMilliseconds())),
        ("attempts", str(policy.maximum_attempts)),
        ("at once", count_of(task.max_concurrent_runs, "run") if task.max_concurrent_runs else ""),
        ("run budget", money(task.run_budget_usd) if task.run_budget_usd else ""),
        ("webhook", plain(_told(task.webhook)) if task.HasField("webhook") else ""),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(task.labels.items()))),
        ("created", local_time(task.create_time)),
        ("changed", local_time(task.update_time)),
    ]
    return facts(rows)


def _told(webhook: Webhook) -> str:
    ends = ", ".join(word(TaskRun.State, state).plain for state in webhook.states)
    return f"{webhook.url} on {ends or 'every end'}"


def _variable(variable: TaskVariable) -> Text:
    text = f"{variable.name}: {TaskVariable.Type.Name(variable.type).lower()}"
    if variable.HasField("default_value"):
        text += f" = {_default(variable)}"
    elif variable.required:
        text += ", required"
    return plain(f"{text}  {variable.description}".rstrip())


def _default(variable: TaskVariable) -> str:
    return json_text(MessageToDict(variable.default_value))
