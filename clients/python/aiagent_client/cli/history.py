"""`ai-agent sessions messages|tool-calls`: what was said and done."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from aiagent.session.v1.session_pb2 import Message, ToolCall
from aiagent_client.cli.context import Invocation, Output, SessionArgument
from aiagent_client.cli.lookup import session_id
from aiagent_client.cli.output import local_time, plain, table, word
from aiagent_client.cli.text import duration, in_workspace, main_argument, safe, size
from aiagent_client.client import Client

TurnOption = Annotated[str, typer.Option("--turn", help="Only of this turn, by its id.", show_default=False)]


def messages(
    context: typer.Context,
    session: SessionArgument,
    turn: TurnOption = "",
    thinking: Annotated[bool, typer.Option(help="Show the model's thinking, too.")] = False,
    output: Output = None,
) -> None:
    """Show what was said, in order.

    \b
    Examples:
      ai-agent sessions messages demo
      ai-agent sessions messages demo -o json | jq -r '.[-1].content.text'
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            identity = await session_id(client, session)
            found = [
                message
                async for message in client.sessions.messages(identity, turn_id=turn, page_size=200)
                if thinking or message.type != Message.THINKING or invocation.as_json
            ]
        if not found and not invocation.as_json:
            invocation.notes.print("no messages", style="dim")
            return
        invocation.result(found, lambda: _print_messages(invocation.out, found))

    invocation.run(work)


def _print_messages(out: Console, found: list[Message]) -> None:
    for message in found:
        user = message.role == Message.USER
        who = "you" if user else "thinking" if message.type == Message.THINKING else "agent"
        if message.parent_tool_use_id:
            who += " (subagent)"
        out.print(
            Text.assemble(
                (who, "bold cyan" if user else "bold green"), (f"  {local_time(message.create_time)}", "dim")
            )
        )
        style = "dim italic" if message.type == Message.THINKING else ""
        out.print(Text(safe(message.content.text), style=style), soft_wrap=True)
        if message.content.HasField("reference"):
            out.print(Text(f"[cut; {size(message.content.reference.size_bytes)} in all]", style="dim"))
        out.print()


def tool_calls(
    context: typer.Context,
    session: SessionArgument,
    turn: TurnOption = "",
    tool: Annotated[str, typer.Option(help="Only of this tool.", show_default=False)] = "",
    output: Output = None,
) -> None:
    """Show the tool calls with their decisions and results.

    \b
    Examples:
      ai-agent sessions tool-calls demo
      ai-agent sessions tool-calls demo --tool Bash -o json | jq -r '.[].tool_use.input.command'
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            identity = await session_id(client, session)
            found = [
                call
                async for call in client.sessions.tool_calls(
                    identity, turn_id=turn, tool_name=tool, page_size=200
                )
            ]
        if not found and not invocation.as_json:
            invocation.notes.print("no tool calls", style="dim")
            return
        invocation.result(found, lambda: _tool_calls(found, invocation.out.width, identity))

    invocation.run(work)


def _tool_calls(found: list[ToolCall], width: int, identity: str) -> Any:
    room = max(12, (width - 62) // 2)
    return table(
        [
            ("#", {"justify": "right", "no_wrap": True}),
            ("TOOL", {"no_wrap": True}),
            ("INPUT", {"no_wrap": True}),
            ("STATE", {"no_wrap": True}),
            ("BY", {"no_wrap": True}),
            ("TIME", {"justify": "right", "no_wrap": True}),
            ("RESULT", {"no_wrap": True}),
        ],
        [
            (
                str(call.sequence),
                plain(call.tool_use.tool_name, 20),
                plain(in_workspace(main_argument(call.tool_use), identity), room),
                word(ToolCall.State, call.state),
                call.decision.source.lower().replace("_", " "),
                _time_of(call),
                plain(in_workspace(call.result.content.text, identity), room)
                if call.HasField("result")
                else "",
            )
            for call in found
        ],
    )


def _time_of(call: ToolCall) -> str:
    if not call.HasField("end_time"):
        return ""
    return duration(call.end_time.ToMilliseconds() - call.create_time.ToMilliseconds())
