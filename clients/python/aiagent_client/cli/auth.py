"""`ai-agent auth`: accounts and logins."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from aiagent.auth.v1.user_pb2 import User
from aiagent_client.cli.context import Invocation, Output, has_fixed_token
from aiagent_client.cli.failures import FailedError, UsageError
from aiagent_client.cli.output import facts, local_time, word
from aiagent_client.client import Client
from aiagent_client.credentials import Credentials
from aiagent_client.errors import UnavailableError

app = typer.Typer(no_args_is_help=True, help="Accounts and logins.")

PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


@app.command()
def register(
    context: typer.Context,
    email: Annotated[str, typer.Option("--email", "-e", help="E-mail address.", show_default=False)] = "",
    username: Annotated[
        str, typer.Option("--username", "-u", help="Short name to log in with.", show_default=False)
    ] = "",
    full_name: Annotated[str, typer.Option(help="Name as you write it.", show_default=False)] = "",
    password_stdin: PasswordStdin = False,
    login: Annotated[bool, typer.Option(help="Log in with the new account.")] = True,
    output: Output = None,
) -> None:
    """Create an account, and log in with it.

    \b
    Examples:
      ai-agent auth register
      ai-agent auth register -e ada@example.org -u ada --password-stdin < password.txt
    """
    invocation = Invocation.of(context, output)

    # Questions come before the event loop: while it runs, Ctrl-C would not end them.
    with invocation.guarded():
        address = email or _ask("E-mail address", "--email")
        name = username or _ask("User name", "--username")
        password = _password(password_stdin, twice=True)

    async def work(client: Client) -> None:
        with invocation.busy("creating the account"):
            user = await client.auth.register(
                email=address, username=name, password=password, full_name=full_name
            )
            if login:
                await client.auth.login(address, password)
        invocation.result(user, lambda: _user(user))

    invocation.run(work)


@app.command()
def login(
    context: typer.Context,
    account: Annotated[
        str, typer.Argument(metavar="[ACCOUNT]", help="E-mail address or user name.", show_default=False)
    ] = "",
    email: Annotated[str, typer.Option("--email", "-e", help="E-mail address.", show_default=False)] = "",
    username: Annotated[str, typer.Option("--username", "-u", help="User name.", show_default=False)] = "",
    password_stdin: PasswordStdin = False,
    output: Output = None,
) -> None:
    """Log in; the tokens are kept in a file only you can read.

    \b
    Examples:
      ai-agent auth login
      ai-agent auth login ada@example.org
      pass show ai-agent | ai-agent auth login ada --password-stdin
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        given = [name for name in (account, email, username) if name]
        if len(given) > 1:
            raise UsageError("name the account once")
        name = given[0] if given else _ask("E-mail address or user name", "ACCOUNT")
        password = _password(password_stdin)

    async def work(client: Client) -> None:
        if client.url.startswith("http://") and not _loopback(client.url):
            invocation.notes.print(f"warning: {client.url} is not encrypted", style="yellow")
        with invocation.busy("logging in"):
            credentials = await client.auth.login(name, password)
        _show_login(invocation, client.url, credentials, "logged in")
        if has_fixed_token():
            invocation.notes.print("warning: AIAGENT_TOKEN is set and is used instead", style="yellow")

    invocation.run(work)


@app.command()
def logout(context: typer.Context, output: Output = None) -> None:
    """Revoke the login and forget it.

    \b
    Example:
      ai-agent auth logout
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        try:
            known = await client.auth.logout()
        except UnavailableError:
            known = True
            invocation.notes.print(
                f"warning: {client.url} could not be told; the login ends there by itself", style="yellow"
            )
        invocation.result(
            {"url": client.url, "logged_out": known}, lambda: "logged out" if known else "not logged in"
        )

    invocation.run(work)


@app.command()
def whoami(context: typer.Context, output: Output = None) -> None:
    """Show the account you are logged in with, as the server knows it.

    \b
    Examples:
      ai-agent auth whoami
      ai-agent auth whoami -o json | jq -r .id
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            user = await client.auth.me()
        invocation.result(user, lambda: _user(user))

    invocation.run(work)


@app.command()
def refresh(context: typer.Context, output: Output = None) -> None:
    """Renew the access token now; commands do so by themselves when it is time.

    \b
    Example:
      ai-agent auth refresh
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        if has_fixed_token():
            raise UsageError("the token of AIAGENT_TOKEN cannot be renewed here")
        with invocation.busy("renewing"):
            credentials = await client.auth.refresh()
        _show_login(invocation, client.url, credentials, "renewed")

    invocation.run(work)


@app.command()
def status(context: typer.Context, output: Output = None) -> None:
    """Show the stored login without asking the server; exit code 1 when there is none.

    \b
    Examples:
      ai-agent auth status
      ai-agent auth status -o json | jq .logged_in
    """
    invocation = Invocation.of(context, output)

    with invocation.guarded():
        url = invocation.settings.server().url
        if has_fixed_token():
            invocation.result(
                {"url": url, "logged_in": True, "source": "AIAGENT_TOKEN"},
                lambda: facts([("server", url), ("login", "the token of AIAGENT_TOKEN")]),
            )
            return
        credentials = invocation.settings.credentials().load()
        if credentials is None or credentials.refresh_expire_time <= time.time():
            invocation.result(
                {"url": url, "logged_in": False},
                lambda: facts(
                    [
                        ("server", url),
                        ("login", "none: `ai-agent auth login`" if credentials is None else "expired"),
                    ]
                ),
            )
            raise FailedError
        _show_login(invocation, url, credentials, "")


def _show_login(invocation: Invocation, url: str, credentials: Credentials, done: str) -> None:
    document: dict[str, Any] = {
        "url": url,
        "logged_in": True,
        "account": credentials.account,
        "expire_time": _iso(credentials.expire_time),
        "refresh_expire_time": _iso(credentials.refresh_expire_time),
    }

    def show() -> Any:
        if done:
            return f"{done} at {url} as {credentials.account}"
        return facts(
            [
                ("server", url),
                ("account", credentials.account),
                ("token until", _local(credentials.expire_time)),
                ("login until", _local(credentials.refresh_expire_time)),
            ]
        )

    invocation.result(document, show)


def _user(user: User) -> Any:
    return facts(
        [
            ("id", user.id),
            ("e-mail", user.email),
            ("user name", user.username),
            ("name", user.full_name),
            ("role", word(User.Role, user.role)),
            ("organization", user.organization_id),
            ("since", local_time(user.create_time)),
        ]
    )


def _ask(question: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"no terminal to ask on: give {option}")
    answer = ""
    while not answer:
        answer = typer.prompt(question, err=True).strip()
    return answer


def _password(from_stdin: bool, *, twice: bool = False) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise UsageError("there is no password on standard input")
        return password
    if not sys.stdin.isatty():
        raise UsageError("no terminal to ask for the password on: use --password-stdin")
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=twice, err=True)
    return answer


def _loopback(url: str) -> bool:
    return any(f"//{host}" in url for host in ("127.", "localhost", "[::1]"))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
