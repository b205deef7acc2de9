"""`ai-agent schedules backfill`, `backfills`, `cancel-backfill`: fires of the past, made belatedly."""

from __future__ import annotations

from typing import Annotated

import typer

from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleBackfill
from aiagent_client.cli import schedule_views
from aiagent_client.cli.arguments import moment
from aiagent_client.cli.choices import OverlapName, number_of
from aiagent_client.cli.context import Invocation, Output, ScheduleArgument
from aiagent_client.cli.lookup import backfill_id, schedule_id
from aiagent_client.client import Client

app = typer.Typer()


@app.command()
def backfill(
    context: typer.Context,
    schedule: ScheduleArgument,
    from_: Annotated[
        str, typer.Option("--from", help="The first time to make, ISO 8601.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option("--to", help="The last time to make; not in the future.", show_default=False)
    ],
    overlap: Annotated[
        OverlapName | None,
        typer.Option(help="What its fires do; else as the schedule's own do.", show_default=False),
    ] = None,
    output: Output = None,
) -> None:
    """Make the fires of a span of the past, whether they were made before or not. Returns at once.

    \b
    Examples:
      ai-agent schedules backfill weekdays --from 2026-11-01 --to 2026-11-07T23:59
      ai-agent schedules backfill weekdays --from 2026-11-01 --to 2026-11-07 --overlap allow-all
    """
    invocation = Invocation.of(context, output)
    first, last = moment("--from", from_), moment("--to", to)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            made = await client.schedules.backfill(
                await schedule_id(client, schedule),
                first,
                last,
                overlap_policy=number_of(Schedule.OverlapPolicy, overlap or "OVERLAP_POLICY_UNSPECIFIED"),
            )
        invocation.result(made, lambda: schedule_views.facts_of_backfill(made))
        if not invocation.as_json:
            invocation.notes.print(
                f"its runs: ai-agent tasks runs --backfill {made.id}", style="dim", soft_wrap=True
            )

    invocation.run(work)


@app.command()
def backfills(context: typer.Context, schedule: ScheduleArgument, output: Output = None) -> None:
    """List the backfills of a schedule, the newest first.

    \b
    Example:
      ai-agent schedules backfills weekdays
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            of = await schedule_id(client, schedule)
            found: list[ScheduleBackfill] = [one async for one in client.schedules.backfills(of)]
        if not found and not invocation.as_json:
            invocation.notes.print("no backfills", style="dim")
            return
        invocation.result(found, lambda: schedule_views.rows_of_backfills(found, invocation.out.width))

    invocation.run(work)


@app.command("cancel-backfill")
def cancel_backfill(
    context: typer.Context,
    backfill: Annotated[
        str, typer.Argument(metavar="BACKFILL", help="The backfill's whole id.", show_default=False)
    ],
    output: Output = None,
) -> None:
    """Keep a backfill from making further fires. Its runs go on.

    \b
    Example:
      ai-agent schedules cancel-backfill 0198c2f0-5d1e-7c3a-9f00-3b1d2e4f5a6b
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("cancelling"):
            found = await client.schedules.cancel_backfill(backfill_id(backfill))
        invocation.result(found, lambda: schedule_views.facts_of_backfill(found))

    invocation.run(work)
