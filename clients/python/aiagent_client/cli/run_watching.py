"""Following a run in the terminal, to its end."""

from __future__ import annotations

import asyncio

from rich.text import Text

from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent_client.cli.context import Invocation
from aiagent_client.cli.failures import FailedError
from aiagent_client.cli.output import print_json
from aiagent_client.cli.run_views import answer_of, story_of
from aiagent_client.client import Client
from aiagent_client.errors import ApiError


async def follow(invocation: Invocation, client: Client, run_id: str) -> None:
    """Shows what happens to a run, then its result; each change as a line of JSON for programs.

    Raises ApiError, FailedError when the run does not succeed.
    """
    told: set[str] = set()
    state = TaskRun.STATE_UNSPECIFIED
    notes = invocation.notes

    def reconnecting(error: ApiError | None) -> None:
        if error is not None and not error.reason:
            notes.print("connection lost; reconnecting", style="dim")

    if not invocation.as_json:
        notes.print(f"run {run_id}", style="dim", soft_wrap=True)
    watch = client.runs.watch(run_id, on_reconnect=reconnecting)
    try:
        async with watch:
            async for run in watch:
                state = run.state
                if invocation.as_json:
                    print_json(run, line=True)
                    continue
                for name, line in story_of(run):
                    if name not in told:
                        told.add(name)
                        notes.print(line, soft_wrap=True)
                if answer := answer_of(run):
                    invocation.out.print(Text(answer), soft_wrap=True)
    except asyncio.CancelledError:
        say_left(invocation, run_id)
        raise
    if state != TaskRun.SUCCEEDED:
        raise FailedError


def say_left(invocation: Invocation, run_id: str) -> None:
    """Says what becomes of a run that is no longer looked at."""
    invocation.notes.print(
        f"left; the run goes on. `ai-agent tasks watch {run_id}` shows it", style="yellow", soft_wrap=True
    )
