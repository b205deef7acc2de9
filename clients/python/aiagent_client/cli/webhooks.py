"""`ai-agent webhooks`: what was sent when runs ended, and what signs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from aiagent.scheduler.v1.webhook_pb2 import WebhookAttempt, WebhookDelivery, WebhookSecret
from aiagent_client.cli.choices import DeliveryStateName, number_of
from aiagent_client.cli.context import Invocation, Output, TaskArgument
from aiagent_client.cli.failures import UsageError
from aiagent_client.cli.lookup import delivery_id, run_id, task_id
from aiagent_client.cli.output import facts, local_time, plain, when, word
from aiagent_client.cli.tables import Column, fitted
from aiagent_client.cli.text import duration, one_line, safe
from aiagent_client.client import Client

DeliveryArgument = Annotated[
    str,
    typer.Argument(
        metavar="DELIVERY",
        help="The delivery: its id, or a part its id begins or ends with.",
        show_default=False,
    ),
]

app = typer.Typer(no_args_is_help=True, help="Webhooks: what was sent when runs ended, and what signs it.")


@app.command("list")
def list_deliveries(
    context: typer.Context,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Only those of this task.", show_default=False)
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Only those of this run.", show_default=False)
    ] = None,
    state: Annotated[
        list[DeliveryStateName] | None,
        typer.Option("--state", "-s", help="Only in this state; repeatable.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="At most so many; 0: all.")] = 50,
    output: Output = None,
) -> None:
    """List deliveries, the newest first.

    \b
    Examples:
      ai-agent webhooks list nightly
      ai-agent webhooks list --state failed -o json
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        found: list[WebhookDelivery] = []
        more = False
        with invocation.busy("asking"):
            of_task = await task_id(client, task) if task is not None else ""
            of_run = await run_id(client, run) if run is not None else ""
            states = [number_of(WebhookDelivery.State, name) for name in state or []]
            page_size = min(1000, limit + 1) if limit else 1000
            async for one in client.webhooks.list(
                task_id=of_task, task_run_id=of_run, states=states, page_size=page_size
            ):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(one)
        if not found and not invocation.as_json:
            invocation.notes.print("no deliveries", style="dim")
            return
        invocation.result(found, lambda: _deliveries(found, invocation.out.width))
        if more:
            invocation.notes.print(f"there are more than {limit}; --limit 0 shows all", style="dim")

    invocation.run(work)


@app.command()
def show(context: typer.Context, delivery: DeliveryArgument, output: Output = None) -> None:
    """Show one delivery: where it stands, its attempts, its body.

    \b
    Example:
      ai-agent webhooks show 01a22199
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.webhooks.get(await delivery_id(client, delivery))
        invocation.result(found, lambda: _delivery(found))

    invocation.run(work)


@app.command()
def redeliver(context: typer.Context, delivery: DeliveryArgument, output: Output = None) -> None:
    """Send the message of a delivery again, to where the webhook points now.

    \b
    Example:
      ai-agent webhooks redeliver 01a22199
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            made = await client.webhooks.redeliver(await delivery_id(client, delivery))
        invocation.result(made, lambda: _delivery(made))

    invocation.run(work)


@app.command()
def secret(context: typer.Context, task: TaskArgument, output: Output = None) -> None:
    """Print the secret that signs a task's messages.

    \b
    Example:
      ai-agent webhooks secret nightly
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.webhooks.get_secret(await task_id(client, task))
        invocation.result(found, lambda: _secret(invocation, found))

    invocation.run(work)


@app.command("rotate-secret")
def rotate_secret(
    context: typer.Context,
    task: TaskArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = None,
) -> None:
    """Make a new secret, and print it. For 24 hours the one before signs beside it; one before that ends at once.

    \b
    Example:
      ai-agent webhooks rotate-secret nightly --yes
    """
    invocation = Invocation.of(context, output)

    async def find(client: Client) -> Any:
        return await client.tasks.get(await task_id(client, task))

    found = invocation.run(find)
    if not yes:
        with invocation.guarded():
            if not invocation.interactive:
                raise UsageError("no terminal to ask on: give --yes")
        typer.confirm(f"Make a new secret for {one_line(found.name)} ({found.id})?", abort=True, err=True)

    async def work(client: Client) -> None:
        with invocation.busy("rotating"):
            made = await client.webhooks.rotate_secret(found.id)
        invocation.result(made, lambda: _secret(invocation, made))

    invocation.run(work)


def _secret(invocation: Invocation, found: WebhookSecret) -> Text:
    if found.HasField("previous_secret_expire_time"):
        until = local_time(found.previous_secret_expire_time)
        invocation.notes.print(f"the one before signs beside it until {until}", style="dim")
    return Text(safe(found.secret))


def _deliveries(found: list[WebhookDelivery], width: int) -> Text:
    return fitted(
        [
            Column("ID", "id"),
            Column("STATE"),
            Column("EVENT", "text", spare=2),
            Column("ATTEMPTS", right=True),
            Column("CREATED", spare=1),
            Column("NEXT", spare=3),
            Column("RUN", "id", spare=4),
        ],
        [
            (
                one.id,
                word(WebhookDelivery.State, one.state),
                plain(one.event_type),
                str(one.attempt_count),
                when(one.create_time),
                local_time(one.next_attempt_time),
                one.task_run_id,
            )
            for one in found
        ],
        width,
    )


def _delivery(one: WebhookDelivery) -> Any:
    rows: list[tuple[str, Text | str]] = [
        ("id", one.id),
        ("task", one.task_id),
        ("run", one.task_run_id),
        ("event", plain(one.event_type)),
        ("message", plain(one.message_id)),
        ("state", word(WebhookDelivery.State, one.state)),
        ("redelivery of", one.redelivery_of),
        *_attempts(one.attempts),
        ("next attempt", local_time(one.next_attempt_time)),
        ("created", local_time(one.create_time)),
        ("ended", local_time(one.end_time)),
    ]
    shown = facts(rows)
    return Group(shown, Text(""), Text(safe(one.payload_json))) if one.payload_json else shown


def _attempts(attempts: Iterable[WebhookAttempt]) -> Iterator[tuple[str, Text]]:
    """Yields a line for each attempt; where it went, and what went wrong, where it is not as it was before."""
    url = message = ""
    for attempt in attempts:
        if attempt.url != url:
            yield "to", plain(attempt.url, 400)
        yield "attempt", _attempt(attempt)
        if attempt.error_message != message:
            yield "", plain(attempt.error_message, 400)
        url, message = attempt.url, attempt.error_message


def _attempt(attempt: WebhookAttempt) -> Text:
    took = duration(attempt.duration.ToMilliseconds()) if attempt.HasField("duration") else ""
    parts = (
        str(attempt.attempt),
        local_time(attempt.start_time),
        str(attempt.http_status or ""),
        took,
        attempt.error,
    )
    return plain(", ".join(part for part in parts if part))
