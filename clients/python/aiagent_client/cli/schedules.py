"""`ai-agent schedules`: when tasks run by themselves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleSpec
from aiagent_client.cli import schedule_views
from aiagent_client.cli.arguments import moment, time_span, values
from aiagent_client.cli.backfills import app as backfills
from aiagent_client.cli.choices import OverlapName, ScheduleStateName, number_of
from aiagent_client.cli.context import Invocation, Output, ScheduleArgument, TaskArgument
from aiagent_client.cli.failures import UsageError
from aiagent_client.cli.lookup import schedule_id, task_id
from aiagent_client.cli.text import one_line
from aiagent_client.client import Client

Name = Annotated[str | None, typer.Option("--name", "-n", help="What to call it.", show_default=False)]
Cron = Annotated[
    str | None,
    typer.Option(
        help="A cron expression, as '30 9 * * mon-fri': five fields, six with seconds first, or @daily.",
        show_default=False,
    ),
]
Every = Annotated[
    str | None, typer.Option(help="Equal distances instead: 90s, 30m, 2h, 1d.", show_default=False)
]
TimeZone = Annotated[
    str | None,
    typer.Option("--time-zone", "-z", help="Of the cron expression; else UTC.", show_default=False),
]
Start = Annotated[str | None, typer.Option(help="No fire before this time, ISO 8601.", show_default=False)]
End = Annotated[str | None, typer.Option(help="No fire after this time.", show_default=False)]
Jitter = Annotated[
    str | None,
    typer.Option(help="By how much fires may be later, each by its own share.", show_default=False),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--variable",
        help="A value of the task's variables: NAME=TEXT, or NAME:=JSON; repeatable.",
        show_default=False,
    ),
]
Overlap = Annotated[
    OverlapName | None,
    typer.Option(help="What a fire does while a run of an earlier one is open.", show_default=False),
]
CatchUp = Annotated[
    str | None, typer.Option(help="How late a missed fire may be made: 1h, 1d.", show_default=False)
]
PauseOnFailure = Annotated[
    bool | None,
    typer.Option(
        "--pause-on-failure/--no-pause-on-failure",
        help="Whether a run that fails for good pauses it.",
        show_default=False,
    ),
]
Note = Annotated[str, typer.Option("--note", help="Why, for whoever wonders.", show_default=False)]

app = typer.Typer(no_args_is_help=True, help="Schedules: when tasks run by themselves.")


@app.command()
def create(
    context: typer.Context,
    task: TaskArgument,
    cron: Cron = None,
    every: Every = None,
    time_zone: TimeZone = None,
    start: Start = None,
    end: End = None,
    jitter: Jitter = None,
    name: Name = None,
    variable: Values = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    pause_on_failure: PauseOnFailure = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="How many runs it may make.", show_default=False)
    ] = None,
    output: Output = None,
) -> None:
    """Create a schedule of a task.

    \b
    Examples:
      ai-agent schedules create nightly --cron '0 3 * * *' --time-zone Europe/Berlin
      ai-agent schedules create review --every 2h --variable repository=core --variable limit:=5
    """
    invocation = Invocation.of(context, output)
    spec = _spec(cron, every, time_zone, start, end, jitter)
    given = values("--variable", variable)
    window = time_span("--catch-up", catch_up) if catch_up is not None else None

    async def work(client: Client) -> None:
        with invocation.busy("creating the schedule"):
            made = await client.schedules.create(
                await task_id(client, task),
                spec,
                name=name or "",
                variables=given,
                overlap_policy=number_of(Schedule.OverlapPolicy, overlap or "OVERLAP_POLICY_UNSPECIFIED"),
                catch_up_window=window,
                pause_on_failure=bool(pause_on_failure),
                remaining_runs=runs,
            )
        invocation.result(made, lambda: schedule_views.facts_of(made))

    invocation.run(work)


@app.command("list")
def list_schedules(
    context: typer.Context,
    task: Annotated[str, typer.Option("--task", "-t", help="Only of this task.", show_default=False)] = "",
    state: Annotated[
        list[ScheduleStateName] | None,
        typer.Option(help="Only in this state; repeatable.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="At most so many; 0: all.")] = 50,
    output: Output = None,
) -> None:
    """List your schedules, the newest first.

    \b
    Examples:
      ai-agent schedules list
      ai-agent schedules list --task nightly --state paused
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        found: list[Schedule] = []
        more = False
        with invocation.busy("asking"):
            async for schedule in client.schedules.list(
                task_id=await task_id(client, task) if task else "",
                states=[number_of(Schedule.State, word_) for word_ in state or []],
                page_size=min(1000, limit + 1) if limit else 1000,
            ):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(schedule)
        if not found and not invocation.as_json:
            invocation.notes.print("no schedules", style="dim")
            return
        invocation.result(found, lambda: schedule_views.rows_of(found, invocation.out.width))
        if more:
            invocation.notes.print(f"there are more than {limit}; --limit 0 shows all", style="dim")

    invocation.run(work)


@app.command()
def get(context: typer.Context, schedule: ScheduleArgument, output: Output = None) -> None:
    """Show one schedule.

    \b
    Example:
      ai-agent schedules get weekdays
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.schedules.get(await schedule_id(client, schedule))
        invocation.result(found, lambda: schedule_views.facts_of(found))

    invocation.run(work)


@app.command()
def update(
    context: typer.Context,
    schedule: ScheduleArgument,
    cron: Cron = None,
    every: Every = None,
    time_zone: TimeZone = None,
    start: Start = None,
    end: End = None,
    jitter: Jitter = None,
    name: Name = None,
    variable: Values = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    pause_on_failure: PauseOnFailure = None,
    runs: Annotated[
        int | None, typer.Option(min=0, help="How many more runs; 0: any.", show_default=False)
    ] = None,
    output: Output = None,
) -> None:
    """Change what is given of a schedule. Variables that are given replace those there were.

    \b
    Examples:
      ai-agent schedules update weekdays --cron '0 8 * * mon-fri'
      ai-agent schedules update weekdays --overlap buffer-one --runs 10
    """
    invocation = Invocation.of(context, output)
    timing = (cron, every, time_zone, start, end, jitter)
    changes: dict[str, Any] = {
        "name": name,
        "variables": values("--variable", variable) or None,
        "overlap_policy": number_of(Schedule.OverlapPolicy, overlap) if overlap else None,
        "catch_up_window": time_span("--catch-up", catch_up) if catch_up is not None else None,
        "pause_on_failure": pause_on_failure,
        "remaining_runs": -1 if runs == 0 else runs,
    }

    async def work(client: Client) -> None:
        with invocation.busy("changing the schedule"):
            before = await client.schedules.get(await schedule_id(client, schedule))
            if any(part is not None for part in timing):
                changes["spec"] = _spec(*timing, before=before.spec)
            if not any(value is not None for value in changes.values()):
                raise UsageError("say what to change")
            # What was read and is sent back in part must not undo another one's change.
            after = await client.schedules.update(before.id, etag=before.etag, **changes)
        invocation.result(after, lambda: schedule_views.facts_of(after))

    invocation.run(work)


@app.command()
def pause(context: typer.Context, schedule: ScheduleArgument, note: Note = "", output: Output = None) -> None:
    """Keep a schedule from firing until it is resumed.

    \b
    Example:
      ai-agent schedules pause weekdays --note "The repository is being moved."
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("pausing"):
            paused = await client.schedules.pause(await schedule_id(client, schedule), note)
        invocation.result(paused, lambda: schedule_views.facts_of(paused))

    invocation.run(work)


@app.command()
def resume(
    context: typer.Context, schedule: ScheduleArgument, note: Note = "", output: Output = None
) -> None:
    """Let a schedule fire again; what it missed is not made.

    \b
    Example:
      ai-agent schedules resume weekdays
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("resuming"):
            resumed = await client.schedules.resume(await schedule_id(client, schedule), note)
        invocation.result(resumed, lambda: schedule_views.facts_of(resumed))

    invocation.run(work)


@app.command()
def preview(
    context: typer.Context,
    schedule: Annotated[
        str,
        typer.Argument(
            metavar="[SCHEDULE]", help="A schedule; or say when one would fire.", show_default=False
        ),
    ] = "",
    cron: Cron = None,
    every: Every = None,
    time_zone: TimeZone = None,
    start: Start = None,
    end: End = None,
    jitter: Jitter = None,
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=100, help="How many fires.")] = 10,
    after: Annotated[
        str | None, typer.Option(help="Fires after this time, ISO 8601; else now.", show_default=False)
    ] = None,
    output: Output = None,
) -> None:
    """Show when a schedule fires next, or would if there were one.

    \b
    Examples:
      ai-agent schedules preview weekdays --count 5
      ai-agent schedules preview --cron '30 2 * * *' -z Europe/Berlin --after 2026-03-27
    """
    invocation = Invocation.of(context, output)
    timing = (cron, every, time_zone, start, end, jitter)
    if bool(schedule) == any(part is not None for part in timing):
        raise typer.BadParameter("name a schedule, or say when one would fire, with --cron or --every")
    spec = _spec(*timing) if not schedule else None
    later_than = moment("--after", after) if after is not None else None

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            of = spec if spec is not None else await schedule_id(client, schedule)
            fires = await client.schedules.preview(of, count=count, after=later_than)
        if not fires and not invocation.as_json:
            invocation.notes.print("no fire is left", style="dim")
            return
        invocation.result(fires, lambda: schedule_views.fires_of(fires))

    invocation.run(work)


@app.command()
def delete(
    context: typer.Context,
    schedule: ScheduleArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = None,
) -> None:
    """Delete a schedule.

    \b
    Example:
      ai-agent schedules delete weekdays --yes
    """
    invocation = Invocation.of(context, output)

    async def find(client: Client) -> Schedule:
        return await client.schedules.get(await schedule_id(client, schedule))

    found = invocation.run(find)
    if not yes:
        with invocation.guarded():
            if not invocation.interactive:
                raise UsageError("no terminal to ask on: give --yes")
        typer.confirm(f"Delete {one_line(found.name) or 'the schedule'} ({found.id})?", abort=True, err=True)

    async def work(client: Client) -> None:
        with invocation.busy("deleting"):
            await client.schedules.delete(found.id)
        invocation.result({"id": found.id, "deleted": True}, lambda: f"deleted {found.id}")

    invocation.run(work)


app.registered_commands += backfills.registered_commands


def _spec(
    cron: str | None,
    every: str | None,
    time_zone: str | None,
    start: str | None,
    end: str | None,
    jitter: str | None,
    *,
    before: ScheduleSpec | None = None,
) -> ScheduleSpec:
    """Returns when a schedule fires, as it was `before` but for what is given."""
    if (cron is not None and every is not None) or (before is None and cron is None and every is None):
        raise typer.BadParameter("give one of --cron and --every")
    spec = ScheduleSpec()
    if before is not None:
        spec.CopyFrom(before)
    if cron is not None:
        spec.cron_expression = cron
    if every is not None:
        spec.interval.FromTimedelta(time_span("--every", every))
    if time_zone is not None:
        spec.time_zone = time_zone
    if start is not None:
        spec.start_time.FromDatetime(moment("--start", start))
    if end is not None:
        spec.end_time.FromDatetime(moment("--end", end))
    if jitter is not None:
        spec.jitter.FromTimedelta(time_span("--jitter", jitter))
    return spec
