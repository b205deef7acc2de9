"""What every command has at hand: settings, output, a client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from aiagent_client.cli.choices import OutputFormat
from aiagent_client.cli.failures import LEFT, UsageError, report
from aiagent_client.cli.output import console_for, print_json
from aiagent_client.cli.settings import Settings
from aiagent_client.client import Client
from aiagent_client.errors import ClientError, InvalidTokenError, InvalidUrlError, InvalidValueError

Output = Annotated[
    OutputFormat | None,
    typer.Option("--output", "-o", help="table for people, json for programs.", show_default="table"),
]
SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION",
        help="The session: its id, a part its id begins or ends with, or its name.",
        show_default=False,
    ),
]
TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="The task: its id, a part its id begins or ends with, or its name.",
        show_default=False,
    ),
]
ScheduleArgument = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE",
        help="The schedule: its id, a part its id begins or ends with, or its name.",
        show_default=False,
    ),
]


class Invocation:
    """One run of one command."""

    def __init__(self, settings: Settings, output: OutputFormat) -> None:
        self.settings = settings
        self.output = output

    @classmethod
    def of(cls, context: typer.Context, output: OutputFormat | None) -> Invocation:
        """Returns the invocation of a command; its own `--output` wins over the one before the command."""
        root = context.find_root().obj
        settings, default = root if isinstance(root, tuple) else (Settings(), OutputFormat.TABLE)
        return cls(settings, output or default)

    @property
    def as_json(self) -> bool:
        """True when programs read the output."""
        return self.output is OutputFormat.JSON

    @property
    def interactive(self) -> bool:
        """True when a person sits at the terminal and can be asked."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    @property
    def out(self) -> Console:
        """Standard output."""
        return console_for(sys.stdout)

    @property
    def notes(self) -> Console:
        """Standard error: progress, hints and errors."""
        return console_for(sys.stderr)

    def result(self, value: Any, show: Callable[[], Any]) -> None:
        """Prints a result: as JSON, or what `show` returns."""
        if self.as_json:
            print_json(value)
            return
        shown = show()
        if shown is not None:
            self.out.print(shown, soft_wrap=isinstance(shown, (str, Text)))

    def busy(self, text: str) -> AbstractContextManager[Any]:
        """Shows that something is being waited for; on a terminal only."""
        return self.notes.status(text, spinner_style="cyan") if sys.stderr.isatty() else nullcontext()

    def client(self) -> Client:
        """Returns a client with the stored login, or the token of AIAGENT_TOKEN."""
        token = os.environ.get("AIAGENT_TOKEN")
        url = self.settings.server().url
        return Client(url, credentials=self.settings.credentials(), token=token or None)

    def run[T](self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Runs a command's work with a client. Errors are printed; exits with the code that belongs to them."""

        async def with_client() -> T:
            async with self.client() as client:
                return await work(client)

        with self.guarded():
            return asyncio.run(with_client())

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Prints the block's errors, and exits with the code that belongs to them."""
        try:
            yield
        except (InvalidUrlError, InvalidValueError) as error:
            raise typer.Exit(report(UsageError(str(error)), "", as_json=self.as_json)) from error
        except InvalidTokenError as error:
            source = (
                "what AIAGENT_TOKEN holds"
                if has_fixed_token()
                else "what is stored as one; log in anew with `ai-agent auth login`"
            )
            raise typer.Exit(
                report(UsageError(f"not a token: {source}"), "", as_json=self.as_json)
            ) from error
        except ClientError as error:
            raise typer.Exit(report(error, self._url(), as_json=self.as_json)) from error
        except UnicodeError as error:
            # Bytes that are no text come in as lone surrogates, and nothing that is sent may hold one.
            problem = UsageError(
                "what was given, as an argument, in the environment or as input, is not UTF-8 text"
            )
            raise typer.Exit(report(problem, "", as_json=self.as_json)) from error
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            raise typer.Exit(LEFT) from error
        except typer.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise typer.Exit(LEFT) from error
            raise

    def _url(self) -> str:
        try:
            return self.settings.server().url
        except ClientError:
            return ""


def has_fixed_token() -> bool:
    """True when the access token comes from the environment."""
    return bool(os.environ.get("AIAGENT_TOKEN"))
