"""`ai-agent tasks run`, `runs`, `run-show`, `cancel`: tasks as they are carried out."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Group
from rich.text import Text

from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent_client.cli.arguments import values
from aiagent_client.cli.choices import RunStateName, number_of
from aiagent_client.cli.context import Invocation, Output, TaskArgument
from aiagent_client.cli.failures import FailedError
from aiagent_client.cli.lookup import run_id, task_id
from aiagent_client.cli.output import facts, local_time, plain, table, when, word
from aiagent_client.cli.text import money, plain_numbers, safe
from aiagent_client.client import Client

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run: its id, or a part its id begins or ends with.", show_default=False
    ),
]

app = typer.Typer()


@app.command()
def run(
    context: typer.Context,
    task: TaskArgument,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            "--variable",
            help="A value of the task's variables: NAME=TEXT, or NAME:=JSON; repeatable.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end, and show the result.")
    ] = False,
    output: Output = None,
) -> None:
    """Run a task now. With --wait the exit code is 1 if it does not succeed; Ctrl-C leaves it to itself.

    \b
    Examples:
      ai-agent tasks run nightly
      ai-agent tasks run review --variable repository=core --variable limit:=5 --wait
    """
    invocation = Invocation.of(context, output)
    given = values("--variable", variable)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            made = await client.runs.start(await task_id(client, task), given)
        if not wait:
            invocation.result(made, lambda: _run(made))
            return
        if not invocation.as_json:
            invocation.notes.print(f"run {made.id}", style="dim")
        with invocation.busy("running"):
            ended = await client.runs.wait(made.id)
        succeeded = ended.state == TaskRun.SUCCEEDED
        invocation.result(ended, lambda: Text(safe(ended.result)) if succeeded else _run(ended))
        if not succeeded:
            raise FailedError

    invocation.run(work)


@app.command()
def runs(
    context: typer.Context,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Only those of this task.", show_default=False)
    ] = None,
    state: Annotated[
        list[RunStateName] | None,
        typer.Option("--state", "-s", help="Only in this state; repeatable.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="At most so many; 0: all.")] = 50,
    output: Output = None,
) -> None:
    """List runs, the newest first.

    \b
    Examples:
      ai-agent tasks runs nightly
      ai-agent tasks runs --state queued --state running -o json
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        found: list[TaskRun] = []
        more = False
        with invocation.busy("asking"):
            of_task = await task_id(client, task) if task is not None else ""
            states = [number_of(TaskRun.State, name) for name in state or []]
            page_size = min(1000, limit + 1) if limit else 1000
            async for one in client.runs.list(task_id=of_task, states=states, page_size=page_size):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(one)
        if not found and not invocation.as_json:
            invocation.notes.print("no runs", style="dim")
            return
        invocation.result(found, lambda: _runs(found))
        if more:
            invocation.notes.print(f"there are more than {limit}; --limit 0 shows all", style="dim")

    invocation.run(work)


@app.command("run-show")
def run_show(context: typer.Context, run: RunArgument, output: Output = None) -> None:
    """Show one run: where it stands, its attempts, its result.

    \b
    Example:
      ai-agent tasks run-show 0198c2f0
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.runs.get(await run_id(client, run))
        invocation.result(found, lambda: _run(found))

    invocation.run(work)


@app.command()
def cancel(context: typer.Context, run: RunArgument, output: Output = None) -> None:
    """End a run: one that waits at once, one that has begun as soon as its agent has stopped.

    \b
    Example:
      ai-agent tasks cancel 0198c2f0
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("cancelling"):
            found = await client.runs.cancel(await run_id(client, run))
        invocation.result(found, lambda: _cancelled(found))

    invocation.run(work)


def _cancelled(run: TaskRun) -> str:
    return f"cancelled {run.id}" if run.state == TaskRun.CANCELLED else f"{run.id} is being cancelled"


def _runs(found: list[TaskRun]) -> Any:
    return table(
        [
            ("ID", {"no_wrap": True, "min_width": 36}),
            ("STATE", {"no_wrap": True}),
            ("ATTEMPT", {"justify": "right"}),
            ("COST", {"justify": "right"}),
            ("CREATED", {"no_wrap": True}),
            ("TASK", {"no_wrap": True}),
        ],
        [
            (
                run.id,
                word(TaskRun.State, run.state),
                str(run.attempt),
                money(run.cost_usd),
                when(run.create_time),
                run.task_id,
            )
            for run in found
        ],
    )


def _run(run: TaskRun) -> Any:
    given = plain_numbers(MessageToDict(run.variables))
    rows: list[tuple[str, Text | str]] = [
        ("id", run.id),
        ("task", run.task_id),
        ("state", word(TaskRun.State, run.state)),
        ("cancel", "asked for" if run.cancel_requested and not run.HasField("end_time") else ""),
        *[
            ("variable", plain(f"{name} = {json.dumps(value, ensure_ascii=False)}"))
            for name, value in given.items()
        ],
        ("session", run.session_id),
        *[("attempt", _attempt(attempt)) for attempt in run.attempts],
        ("failure", plain(f"{run.failure.reason}: {run.failure.message}") if run.failure.reason else ""),
        ("cost", money(run.cost_usd)),
        ("created", local_time(run.create_time)),
        ("started", local_time(run.start_time)),
        ("ended", local_time(run.end_time)),
    ]
    shown = facts(rows)
    answer = run.structured_output_json or run.result
    return Group(shown, Text(""), Text(safe(answer))) if answer else shown


def _attempt(attempt: Any) -> Text:
    return Text.assemble(
        f"{attempt.attempt}  ",
        word(TaskRun.State, attempt.state),
        f"  {safe(attempt.failure.reason)}".rstrip(),
    )
