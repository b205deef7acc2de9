"""`ai-agent tasks run`, `runs`, `run-show`, `watch`, `retry`, `cancel`: tasks as they are carried out."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.text import Text

from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent_client.cli import run_views
from aiagent_client.cli.arguments import values
from aiagent_client.cli.choices import RunStateName, number_of
from aiagent_client.cli.context import Invocation, Output, TaskArgument
from aiagent_client.cli.failures import FailedError
from aiagent_client.cli.lookup import backfill_id, run_id, schedule_id, task_id
from aiagent_client.cli.run_watching import follow, say_left
from aiagent_client.cli.text import safe
from aiagent_client.client import Client

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run: its id, or a part its id begins or ends with.", show_default=False
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Show what happens to it, then the result.")]

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
    watch: Watch = False,
    output: Output = None,
) -> None:
    """Run a task now. With --wait and --watch the exit code is 1 if it does not succeed; Ctrl-C leaves it to itself.

    \b
    Examples:
      ai-agent tasks run nightly --watch
      ai-agent tasks run review --variable repository=core --variable limit:=5 --wait
    """
    invocation = Invocation.of(context, output)
    given = values("--variable", variable)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            made = await client.runs.start(await task_id(client, task), given)
        if watch:
            await follow(invocation, client, made.id)
            return
        if not wait:
            invocation.result(made, lambda: run_views.facts_of(made))
            return
        if not invocation.as_json:
            invocation.notes.print(f"run {made.id}", style="dim")
        try:
            with invocation.busy("running"):
                ended = await client.runs.wait(made.id)
        except asyncio.CancelledError:
            say_left(invocation, made.id)
            raise
        succeeded = ended.state == TaskRun.SUCCEEDED
        invocation.result(ended, lambda: Text(safe(ended.result)) if succeeded else run_views.facts_of(ended))
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
    schedule: Annotated[
        str, typer.Option("--schedule", help="Only those of this schedule.", show_default=False)
    ] = "",
    backfill: Annotated[
        str, typer.Option("--backfill", help="Only those of this backfill, by its id.", show_default=False)
    ] = "",
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
            of_schedule = await schedule_id(client, schedule) if schedule else ""
            of_backfill = backfill_id(backfill) if backfill else ""
            states = [number_of(TaskRun.State, name) for name in state or []]
            page_size = min(1000, limit + 1) if limit else 1000
            async for one in client.runs.list(
                task_id=of_task,
                schedule_id=of_schedule,
                backfill_id=of_backfill,
                states=states,
                page_size=page_size,
            ):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(one)
        if not found and not invocation.as_json:
            invocation.notes.print("no runs", style="dim")
            return
        invocation.result(found, lambda: run_views.rows_of(found, invocation.out.width))
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
        invocation.result(found, lambda: run_views.facts_of(found))

    invocation.run(work)


@app.command()
def watch(context: typer.Context, run: RunArgument, output: Output = None) -> None:
    """Look on until a run is over: what happens to it, then its result. Survives lost connections.

    With -o json each change is one line: the run as it stands.

    The exit code is 1 if it does not succeed. Ctrl-C leaves it to itself.

    \b
    Examples:
      ai-agent tasks watch 0198c2f0
      ai-agent tasks watch 0198c2f0 -o json | jq -r .state
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        await follow(invocation, client, await run_id(client, run))

    invocation.run(work)


@app.command()
def retry(context: typer.Context, run: RunArgument, watch: Watch = False, output: Output = None) -> None:
    """Do a run again that ended without success: a new run, with the same prompt and settings.

    \b
    Examples:
      ai-agent tasks retry 0198c2f0
      ai-agent tasks retry 0198c2f0 --watch
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            made = await client.runs.retry(await run_id(client, run))
        if watch:
            await follow(invocation, client, made.id)
            return
        invocation.result(made, lambda: run_views.facts_of(made))

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
        invocation.result(found, lambda: run_views.cancelled(found))

    invocation.run(work)
