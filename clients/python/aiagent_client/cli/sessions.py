"""`ai-agent sessions`: make, list, show and delete sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from aiagent.session.v1.agent_options_pb2 import AgentOptions
from aiagent.session.v1.session_pb2 import PermissionRequest, Session
from aiagent_client.cli import answers, files, history, talking
from aiagent_client.cli.arguments import labels, rules, text_or_file
from aiagent_client.cli.choices import ModeName, PermissionModeName, StateName, number_of
from aiagent_client.cli.context import Invocation, Output, SessionArgument
from aiagent_client.cli.failures import UsageError
from aiagent_client.cli.lookup import session_id
from aiagent_client.cli.output import facts, local_time, plain, when, word
from aiagent_client.cli.tables import Column, fitted
from aiagent_client.cli.text import count_of, duration, main_argument, money, one_line
from aiagent_client.client import Client
from aiagent_client.errors import ClientError

app = typer.Typer(no_args_is_help=True, help="Sessions: conversations with an agent, and their directories.")


@app.command()
def create(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory",
            "-d",
            exists=True,
            file_okay=False,
            readable=True,
            show_default=False,
            help="Copy this directory into the session's workspace; .git goes along, unless excluded.",
        ),
    ] = None,
    exclude: files.Exclude = None,
    everything: files.Everything = False,
    name: Annotated[str, typer.Option("--name", "-n", help="What to call it.", show_default=False)] = "",
    mode: Annotated[ModeName, typer.Option(help="How it is used.", metavar="MODE")] = ModeName.interactive,
    model: Annotated[
        str, typer.Option(help="The model; the server's default if left out.", show_default=False)
    ] = "",
    permission_mode: Annotated[
        PermissionModeName, typer.Option(help="How tool calls are decided that no list names.")
    ] = PermissionModeName.default,
    allowed_tool: Annotated[
        list[str] | None,
        typer.Option(
            help="Runs without a question, as Bash or 'Bash(git log:*)'; repeatable.", show_default=False
        ),
    ] = None,
    disallowed_tool: Annotated[
        list[str] | None, typer.Option(help="Never runs; repeatable.", show_default=False)
    ] = None,
    system_prompt: Annotated[
        str, typer.Option(help="Instructions for the agent, or @FILE.", show_default=False)
    ] = "",
    max_turns: Annotated[
        int, typer.Option(min=0, max=10_000, help="Model calls a message may take; 0: any.")
    ] = 0,
    max_budget_usd: Annotated[
        float,
        typer.Option("--max-budget-usd", min=0, max=1_000_000, help="US dollars it may spend; 0: any."),
    ] = 0,
    label: Annotated[
        list[str] | None, typer.Option(help="A label, KEY=VALUE; repeatable.", show_default=False)
    ] = None,
    output: Output = None,
) -> None:
    """Create a session. Its agent starts with the first message.

    \b
    Examples:
      ai-agent sessions create --name demo --directory .
      ai-agent sessions create --allowed-tool Read --allowed-tool 'Bash(git:*)'
      ID=$(ai-agent sessions create -o json | jq -r .id)
    """
    invocation = Invocation.of(context, output)
    allowed = rules("--allowed-tool", allowed_tool)
    disallowed = rules("--disallowed-tool", disallowed_tool)

    async def work(client: Client) -> None:
        options = AgentOptions(
            model=model,
            system_prompt=text_or_file(system_prompt),
            allowed_tools=allowed,
            disallowed_tools=disallowed,
            permission_mode=number_of(AgentOptions.PermissionMode, permission_mode),
            max_turns=max_turns,
            max_budget_usd=max_budget_usd,
        )
        with invocation.busy("creating the session"):
            session = await client.sessions.create(
                name=name, mode=number_of(Session.Mode, mode), sdk_options=options, labels=labels(label)
            )
        if directory is not None:
            try:
                await files.send_directory(
                    invocation,
                    client,
                    session.id,
                    directory,
                    to="",
                    exclude=exclude or [],
                    everything=everything,
                )
            except BaseException as error:
                # Half a session is none: it would be found later with an empty workspace.
                await client.sessions.delete(session.id)
                if isinstance(error, ClientError):
                    invocation.notes.print("the session was not kept", style="dim")
                raise
            session = await client.sessions.get(session.id)
        invocation.result(session, lambda: _session(session, []))

    invocation.run(work)


@app.command("list")
def list_sessions(
    context: typer.Context,
    state: Annotated[
        list[StateName] | None, typer.Option(help="Only in this state; repeatable.", show_default=False)
    ] = None,
    name: Annotated[
        str, typer.Option("--name", "-n", help="Only if the name contains this.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="At most so many; 0: all.")] = 50,
    output: Output = None,
) -> None:
    """List your sessions, the newest first.

    \b
    Examples:
      ai-agent sessions list
      ai-agent sessions list --state waiting --state processing
      ai-agent sessions list -o json | jq -r '.[].id'
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        found: list[Session] = []
        more = False
        with invocation.busy("asking"):
            async for session in client.sessions.list(
                states=[number_of(Session.State, word_) for word_ in state or []],
                name_contains=name,
                page_size=min(1000, limit + 1) if limit else 1000,
            ):
                if limit and len(found) >= limit:
                    more = True
                    break
                found.append(session)
        if not found and not invocation.as_json:
            invocation.notes.print("no sessions", style="dim")
            return
        invocation.result(found, lambda: _sessions(found, invocation.out.width))
        if more:
            invocation.notes.print(f"there are more than {limit}; --limit 0 shows all", style="dim")

    invocation.run(work)


@app.command()
def get(context: typer.Context, session: SessionArgument, output: Output = None) -> None:
    """Show one session.

    \b
    Examples:
      ai-agent sessions get demo
      ai-agent sessions get 0198c2f0 -o json
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            found = await client.sessions.get(await session_id(client, session))
            questions: list[PermissionRequest] = []
            if found.state == Session.WAITING and not invocation.as_json:
                questions = [
                    request
                    async for request in client.permissions.list(found.id, states=[PermissionRequest.PENDING])
                ]
        invocation.result(found, lambda: _session(found, questions))

    invocation.run(work)


@app.command()
def delete(
    context: typer.Context,
    session: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = None,
) -> None:
    """Delete a session with its history, its workspace and its files; stops what runs.

    \b
    Example:
      ai-agent sessions delete demo --yes
    """
    invocation = Invocation.of(context, output)

    async def find(client: Client) -> Session:
        return await client.sessions.get(await session_id(client, session))

    found = invocation.run(find)
    if not yes:
        with invocation.guarded():
            if not invocation.interactive:
                raise UsageError("no terminal to ask on: give --yes")
        name = one_line(found.name) or "the session"
        typer.confirm(f"Delete {name} ({found.id}) with its files?", abort=True, err=True)

    async def work(client: Client) -> None:
        with invocation.busy("deleting"):
            await client.sessions.delete(found.id)
        invocation.result({"id": found.id, "deleted": True}, lambda: f"deleted {found.id}")

    invocation.run(work)


for _name, _command in (
    ("query", talking.query),
    ("watch", talking.watch),
    ("interrupt", talking.interrupt),
    ("messages", history.messages),
    ("tool-calls", history.tool_calls),
    ("permissions", answers.permissions),
    ("approve", answers.approve),
    ("deny", answers.deny),
    ("upload", files.upload),
    ("download", files.download),
):
    app.command(_name)(_command)


def _sessions(found: list[Session], width: int) -> Text:
    return fitted(
        [
            Column("ID", "id"),
            Column("NAME", "text"),
            Column("STATE"),
            Column("TURNS", right=True),
            Column("COST", right=True),
            Column("CREATED", spare=1),
        ],
        [
            (
                session.id,
                plain(session.name, 40),
                word(Session.State, session.state),
                str(session.counters.turns),
                money(session.counters.cost_usd),
                when(session.create_time),
            )
            for session in found
        ],
        width,
    )


def _session(session: Session, questions: list[PermissionRequest]) -> Any:
    options, counters = session.sdk_options, session.counters
    mode = word(Session.Mode, session.mode)
    rows: list[tuple[str, Text | str]] = [
        ("id", session.id),
        ("name", plain(session.name)),
        ("state", word(Session.State, session.state)),
        ("mode", mode),
        (
            "model",
            (options.model or "the server's default")
            + ("  (the offline model answers)" if session.offline_model else ""),
        ),
        ("permission mode", word(AgentOptions.PermissionMode, options.permission_mode)),
        ("allowed tools", ", ".join(options.allowed_tools)),
        ("disallowed tools", ", ".join(options.disallowed_tools)),
        ("budget", money(options.max_budget_usd) if options.max_budget_usd else ""),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(session.labels.items()))),
        ("created", local_time(session.create_time)),
        ("changed", local_time(session.update_time)),
    ]
    if counters.turns:
        work = (
            f"{count_of(counters.turns, 'turn')}, {count_of(counters.messages, 'message')}, "
            f"{count_of(counters.tool_calls, 'tool call')}, {duration(counters.duration_ms)}"
        )
        usage = counters.usage
        tokens = (
            f"{usage.input_tokens:,} in, {usage.output_tokens:,} out, {usage.cache_read_tokens:,} from cache"
        )
        rows += [("work", work), ("tokens", tokens), ("cost", money(counters.cost_usd))]
    for request in questions:
        rows.append(
            ("asks", f"{request.tool_use.tool_name} {one_line(main_argument(request.tool_use), 100)}")
        )
    return facts(rows)
