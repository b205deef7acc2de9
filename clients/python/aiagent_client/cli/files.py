"""`ai-agent sessions upload|download`: files into a workspace and out of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from aiagent_client.archives import Packing
from aiagent_client.cli.context import Invocation, Output, SessionArgument
from aiagent_client.cli.failures import UsageError
from aiagent_client.cli.lookup import session_id
from aiagent_client.cli.text import count_of, one_line, size
from aiagent_client.client import Client
from aiagent_client.workspaces import Uploaded

_SHOWN = 5

Everything = Annotated[
    bool, typer.Option("--everything", help="Also what git ignores, and private files as .env.")
]

Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out what matches, as 'build/*' or .git, whose config may hold credentials; repeatable.",
        show_default=False,
    ),
]


def upload(
    context: typer.Context,
    session: SessionArgument,
    directory: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, readable=True, help="The directory.", show_default=False
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", help="Where its content goes, within the workspace.", show_default=False)
    ] = "",
    exclude: Exclude = None,
    everything: Everything = False,
    output: Output = None,
) -> None:
    """Copy a directory's content into the workspace: all or nothing. What git ignores stays here; .git goes along.

    \b
    Example:
      ai-agent sessions upload demo ./src --to src --exclude __pycache__
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        identity = await session_id(client, session)
        done = await send_directory(
            invocation, client, identity, directory, to=to, exclude=exclude or [], everything=everything
        )
        invocation.result({"file_count": done.file_count, "size_bytes": done.size_bytes}, lambda: None)

    invocation.run(work)


async def send_directory(
    invocation: Invocation,
    client: Client,
    identity: str,
    directory: Path,
    *,
    to: str,
    exclude: list[str],
    everything: bool,
) -> Uploaded:
    """Uploads a directory with a progress bar, and tells what was left out."""
    with _progress(invocation, not sys.stderr.isatty()) as progress:
        task = progress.add_task("uploading", total=None)

        def on_progress(packing: Packing) -> None:
            progress.update(task, total=max(1, packing.size_bytes), completed=packing.packed_bytes)

        done = await client.workspaces.upload_directory(
            identity, directory, path=to, exclude=exclude, everything=everything, on_progress=on_progress
        )
    notes = invocation.notes
    notes.print(f"uploaded {count_of(done.file_count, 'file')}, {size(done.size_bytes)}", style="dim")
    _tell_left_out(invocation, done.skipped)
    return done


def _tell_left_out(invocation: Invocation, skipped: Sequence[tuple[str, str]]) -> None:
    notes = invocation.notes
    for name, reason in skipped[:_SHOWN]:
        notes.print(f"left out {one_line(name)}: {reason}", style="yellow", soft_wrap=True)
    if len(skipped) > _SHOWN:
        notes.print(f"left out {len(skipped) - _SHOWN} more", style="yellow")


def download(
    context: typer.Context,
    session: SessionArgument,
    directory: Annotated[
        Path, typer.Argument(file_okay=False, help="Where to put the files; must be empty or new.")
    ],
    path: Annotated[
        str, typer.Option("--path", help="Only this part of the workspace.", show_default=False)
    ] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace files in a directory that is not empty.")] = False,
    output: Output = None,
) -> None:
    """Copy the workspace's files into a local directory.

    \b
    Examples:
      ai-agent sessions download demo ./result
      ai-agent sessions download demo . --path reports --overwrite
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        if not overwrite and directory.exists() and any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty: name another directory, or give --overwrite")
        identity = await session_id(client, session)
        with _progress(invocation, not sys.stderr.isatty()) as progress:
            task = progress.add_task("downloading", total=None)
            done = await client.workspaces.download_workspace(
                identity,
                directory,
                path=path,
                on_progress=lambda received: progress.update(task, completed=received),
            )
        _tell_left_out(invocation, done.skipped)
        invocation.result(
            {"file_count": done.file_count, "size_bytes": done.size_bytes, "directory": str(directory)},
            lambda: f"{count_of(done.file_count, 'file')}, {size(done.size_bytes)} in {directory}",
        )

    invocation.run(work)


def _progress(invocation: Invocation, disabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=invocation.notes,
        transient=True,
        disable=disabled,
    )
