"""The command's root: options that come before every command.

Help must come at once, and a shell asks for it often: a group of commands, and with it gRPC and the contract's
messages, is imported when one of its commands is looked for.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from typing import Annotated, ClassVar

import typer
from typer import _click
from typer._click.exceptions import ClickException, NoArgsIsHelpError
from typer.core import TyperGroup
from typer.main import get_command

from aiagent_client.cli.choices import OutputFormat

_AS_JSON = re.compile(r"(-o=?|--output=)json", re.IGNORECASE)


def _normalized(word: str) -> str:
    """Takes options and words of the contract in any case, and as the contract writes them: `accept_edits`."""
    return word.lower().replace("_", "-")


app = typer.Typer(
    name="ai-agent",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": _normalized},
)


class _Later(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    module: ClassVar[str]

    @property
    def commands(self) -> MutableMapping[str, _click.Command]:
        """Its commands, by name."""
        group = get_command(import_module(self.module).app)
        if not isinstance(group, TyperGroup):
            raise TypeError(self.module)
        return group.commands

    @commands.setter
    def commands(self, _none: MutableMapping[str, _click.Command]) -> None:
        """The constructor's word: it knows none."""


def _add(name: str, text: str) -> None:
    later = type(name, (_Later,), {"module": f"aiagent_client.cli.{name}"})
    app.add_typer(typer.Typer(cls=later, no_args_is_help=True, help=text), name=name)


_add("auth", "Accounts and logins.")
_add("sessions", "Sessions: conversations with an agent, and their directories.")
_add("tasks", "Tasks: work for agents that is done again and again.")
_add("schedules", "Schedules: when tasks run by themselves.")
_add("webhooks", "Webhooks: what was sent when runs ended, and what signs it.")
_add("config", "Which server to use.")


def _version(wanted: bool) -> None:
    if wanted:
        from aiagent_client.connection import package_version

        print(f"ai-agent {package_version()}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="The server; else AIAGENT_URL, else the stored one.", show_default=False),
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="table for people, json for programs.")
    ] = OutputFormat.TABLE,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Claude Code agents as a service, from the command line.

    \b
    First steps:
      ai-agent auth register
      ai-agent sessions create --name demo --directory .
      ai-agent sessions query demo "What does this project do?"

    Exit codes: 0 done, 1 it failed, 2 wrong use, 130 left with Ctrl-C.
    """
    from aiagent_client.cli.settings import Settings

    context.obj = (Settings(url), output)


def main() -> None:
    """Runs the command line."""
    for name in ("stdin", "stdout", "stderr"):
        # Closed by whoever started it (`>&-`). The null device takes its number, before a file or a socket does.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows a question mark; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            _run()
        finally:
            # What is still held back is written here, where its failure can be told.
            print(end="", flush=True)
    except OSError as error:
        _report_failed_file(error)
        sys.exit(1)


def _report_failed_file(error: OSError) -> None:
    """Says which file failed, most often the output; a reader that went away is no news. Gives the rest up."""
    with suppress(OSError, ValueError):
        # Python writes what is held back once more when it ends, and would fail as loudly as now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return
    what = error.filename or "the output cannot be written"
    message = f"{what}: {error.strerror or error}"
    with suppress(OSError):
        if _for_programs(sys.argv[1:]):
            from aiagent_client.cli.failures import report_to_programs

            report_to_programs("Output", message)
        else:
            print(f"error: {message}", file=sys.stderr)


def _run() -> None:
    if not _for_programs(sys.argv[1:]):
        app()
    from aiagent_client.cli.failures import FAILED, WRONG_USE, report_wrong_use

    try:
        code = app(standalone_mode=False)
    except NoArgsIsHelpError:
        report_wrong_use("no command was given")
        sys.exit(WRONG_USE)
    except ClickException as error:
        report_wrong_use(error.format_message())
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _for_programs(arguments: list[str]) -> bool:
    """Whether JSON is asked for: a command line that cannot be parsed must be answered all the same."""
    asked = [f"{one}={following}" for one, following in pairwise(arguments)] + arguments
    return any(_AS_JSON.fullmatch(one) for one in asked)
