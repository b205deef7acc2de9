"""`ai-agent sessions permissions|approve|deny`: questions to people."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiagent.session.v1.permission_service_pb2 import ResolvePermissionRequest
from aiagent.session.v1.session_pb2 import PermissionRequest
from aiagent_client.cli.context import Invocation, Output, SessionArgument
from aiagent_client.cli.lookup import pending_request, session_id
from aiagent_client.cli.output import plain, table, when, word
from aiagent_client.cli.text import in_workspace, main_argument, one_line
from aiagent_client.client import Client

RequestArgument = Annotated[
    str,
    typer.Argument(
        metavar="[REQUEST]",
        help="The question: its id or a part it begins or ends with; not needed if only one is open.",
        show_default=False,
    ),
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why.", show_default=False)]


def permissions(
    context: typer.Context,
    session: Annotated[
        str, typer.Argument(metavar="[SESSION]", help="Only of this session.", show_default=False)
    ] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that are settled.")] = False,
    output: Output = None,
) -> None:
    """List the questions that wait for a person, of one session or of all.

    \b
    Examples:
      ai-agent sessions permissions
      ai-agent sessions permissions demo --all
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("asking"):
            identity = await session_id(client, session) if session else ""
            states = [] if everything else [PermissionRequest.PENDING]
            found = [request async for request in client.permissions.list(identity, states=states)]
        if not found and not invocation.as_json:
            invocation.notes.print("nothing waits for a person", style="dim")
            return
        invocation.result(found, lambda: _requests(found, invocation.out.width))

    invocation.run(work)


def approve(
    context: typer.Context,
    session: SessionArgument,
    request: RequestArgument = "",
    reason: Reason = "",
    output: Output = None,
) -> None:
    """Let a tool call run, once.

    \b
    Examples:
      ai-agent sessions approve demo
      ai-agent sessions approve demo 0198c2f1 --reason "looks right"
    """
    _resolve(Invocation.of(context, output), session, request, reason, ResolvePermissionRequest.ALLOW_ONCE)


def deny(
    context: typer.Context,
    session: SessionArgument,
    request: RequestArgument = "",
    reason: Reason = "",
    output: Output = None,
) -> None:
    """Do not let a tool call run; the agent reads the reason and goes on.

    \b
    Example:
      ai-agent sessions deny demo --reason "not in this directory"
    """
    _resolve(Invocation.of(context, output), session, request, reason, ResolvePermissionRequest.DENY)


def _resolve(
    invocation: Invocation,
    session: str,
    request: str,
    reason: str,
    decision: ResolvePermissionRequest.Decision.ValueType,
) -> None:
    async def work(client: Client) -> None:
        with invocation.busy("answering"):
            identity = await session_id(client, session)
            asked = await pending_request(client, identity, request)
            answered = await client.permissions.resolve(identity, asked.id, decision, reason)
        verb = "allowed" if decision == ResolvePermissionRequest.ALLOW_ONCE else "denied"
        invocation.result(
            answered,
            lambda: (
                f"{verb}: {one_line(asked.tool_use.tool_name)} {one_line(main_argument(asked.tool_use), 100)}"
            ),
        )

    invocation.run(work)


def _requests(found: list[PermissionRequest], width: int) -> Any:
    room = max(16, min(60, width - 82))
    return table(
        [
            ("REQUEST", {"no_wrap": True, "min_width": 36}),
            ("SESSION", {"no_wrap": True, "min_width": 9}),
            ("CALL", {"no_wrap": True, "min_width": room}),
            ("STATE", {"no_wrap": True}),
            ("ASKED", {"no_wrap": True}),
        ],
        [
            (
                request.id,
                # The end of an id tells sessions apart; the beginning is its time.
                f"…{request.session_id[-8:]}",
                plain(_call(request), room),
                word(PermissionRequest.State, request.state),
                when(request.create_time),
            )
            for request in found
        ],
    )


def _call(request: PermissionRequest) -> str:
    tool_use = request.tool_use
    return f"{tool_use.tool_name} {in_workspace(main_argument(tool_use), request.session_id)}"
