"""`ai-agent config`: which server to use."""

from __future__ import annotations

from typing import Annotated

import typer

from aiagent_client.cli.context import Invocation, Output
from aiagent_client.cli.output import facts

app = typer.Typer(no_args_is_help=True, help="Which server to use.")


@app.command()
def show(context: typer.Context, output: Output = None) -> None:
    """Show the settings in force and where they come from.

    \b
    Example:
      ai-agent config show
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        settings = invocation.settings
        server = settings.server()
        invocation.result(
            {
                "url": server.url,
                "url_source": server.source,
                "config_file": str(settings.path),
                "credentials_file": str(settings.credentials_path),
            },
            lambda: facts(
                [
                    ("server", f"{server.url}  ({server.source})"),
                    ("settings", str(settings.path)),
                    ("logins", str(settings.credentials_path)),
                ]
            ),
        )


@app.command("set-url")
def set_url(
    context: typer.Context,
    url: Annotated[
        str, typer.Argument(help="http://host:port, or https://host for TLS.", show_default=False)
    ],
    output: Output = None,
) -> None:
    """Store the server's URL.

    \b
    Examples:
      ai-agent config set-url http://127.0.0.1:8080
      ai-agent config set-url https://agents.example.org
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        stored = invocation.settings.set_url(url)
        invocation.result({"url": stored}, lambda: stored)


@app.command("get-url")
def get_url(context: typer.Context, output: Output = None) -> None:
    """Print the server's URL.

    \b
    Example:
      curl "$(ai-agent config get-url)/health"
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        server = invocation.settings.server()
        invocation.result({"url": server.url, "url_source": server.source}, lambda: server.url)


@app.command()
def reset(context: typer.Context, output: Output = None) -> None:
    """Forget all settings; logins stay (see `ai-agent auth logout`).

    \b
    Example:
      ai-agent config reset
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        done = invocation.settings.reset()
        invocation.result({"reset": done}, lambda: "settings removed" if done else "there were no settings")
