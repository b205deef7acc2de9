"""`ai-agent sessions query|watch|interrupt`: speaking with an agent and looking on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from aiagent.session.v1.session_pb2 import Turn
from aiagent.session.v1.session_service_pb2 import WatchCursor, WhenBusy
from aiagent_client.cli.choices import WhenBusyName, number_of
from aiagent_client.cli.context import Invocation, Output, SessionArgument
from aiagent_client.cli.conversation import Conversation, Interrupts, hint, tell_queued
from aiagent_client.cli.failures import FailedError, UsageError
from aiagent_client.cli.lookup import session_id
from aiagent_client.cli.output import print_json, word
from aiagent_client.cli.questions import person_present
from aiagent_client.cli.rendering import Renderer
from aiagent_client.client import Client
from aiagent_client.connection import new_request_id
from aiagent_client.sessions import FINAL_STATES

# A turn is waited for as long as it takes; the server bounds it. In seconds.
_FOREVER = 10 * 365 * 86400
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Wait at most so many seconds.", show_default=False)
]
Thinking = Annotated[bool, typer.Option(help="Show the model's thinking.")]


def query(
    context: typer.Context,
    session: SessionArgument,
    message: Annotated[
        str,
        typer.Argument(metavar="MESSAGE", help="What to say; - reads standard input.", show_default=False),
    ],
    when_busy: Annotated[
        WhenBusyName, typer.Option(help="What to do while the agent is at work.")
    ] = WhenBusyName.enqueue,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send, and do not wait for the answer.")] = False,
    wait_for_person: Annotated[
        bool,
        typer.Option(
            "--wait-for-person", help="Without a terminal: wait until somebody answers the agent's questions."
        ),
    ] = False,
    timeout: Timeout = None,
    thinking: Thinking = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="With -o json: every event as it comes, one a line.")
    ] = False,
    output: Output = None,
) -> None:
    """Send a message and show what the agent does, as it does it.

    A question of the agent is asked in the terminal. A message behind other turns is queued, and what they wait for is
    told. Ctrl-C stops the turn; once more, and the turn is left to
    itself. In a pipe the agent's text goes to standard output and all else to standard error.

    \b
    Examples:
      ai-agent sessions query demo "Run the tests and fix what fails."
      git diff | ai-agent sessions query demo -
      ai-agent sessions query demo "How many tests are there?" -o json | jq -r .content

    Exit code 0 when the turn succeeded, 1 when it did not or waits for a person.
    """
    invocation = Invocation.of(context, output)
    text = _message(message)

    async def work(client: Client) -> None:
        identity = await session_id(client, session)
        policy = number_of(WhenBusy.Policy, when_busy)
        async with _bounded(timeout):
            if no_wait:
                turn = await client.sessions.send(identity, text, when_busy=policy)
                await tell_queued(client, Renderer(invocation.notes, invocation.notes), turn)
                invocation.result(turn, lambda: turn.id)
            elif invocation.as_json and not stream:
                await _query_json(invocation, client, identity, text, policy, wait_for_person)
            else:
                await _query_live(
                    invocation, client, identity, text, policy,
                    patient=wait_for_person, thinking=thinking, stream=stream and invocation.as_json,
                )  # fmt: skip

    invocation.run(work)


async def _query_live(
    invocation: Invocation,
    client: Client,
    identity: str,
    text: str,
    policy: WhenBusy.Policy.ValueType,
    *,
    patient: bool,
    thinking: bool,
    stream: bool,
) -> None:
    out = invocation.out
    notes = out if sys.stdout.isatty() and not stream else invocation.notes
    renderer = Renderer(out, notes, session_id=identity, thinking=thinking)
    renderer.idle("sending")
    try:
        turn = await client.sessions.send(identity, text, when_busy=policy)
    finally:
        renderer.finish()
    told = await tell_queued(client, renderer, turn)
    renderer.idle(renderer.before_start)
    conversation = Conversation(
        invocation, client, identity, renderer,
        turn_id=turn.id, asking=person_present() and not stream, patient=patient, stream_json=stream,
        told=told,
    )  # fmt: skip
    with Interrupts(client, identity, turn.id, renderer).handled():
        state = await conversation.follow(WatchCursor(sequence=max(0, turn.first_sequence - 1)))
    if state != "SUCCEEDED":
        raise FailedError


async def _query_json(
    invocation: Invocation,
    client: Client,
    identity: str,
    text: str,
    policy: WhenBusy.Policy.ValueType,
    patient: bool,
) -> None:
    request_id = new_request_id()
    renderer = Renderer(invocation.notes, invocation.notes)
    # The first call only starts the turn and tells its id; the second, with the same request id, waits for it.
    answer = await client.sessions.query(
        identity, text, when_busy=policy, wait_seconds=0, request_id=request_id
    )
    await tell_queued(client, renderer, answer.turn)
    with Interrupts(client, identity, answer.turn.id, renderer).handled(), invocation.busy("working"):
        answer = await client.sessions.query(
            identity,
            text,
            when_busy=policy,
            wait_seconds=_FOREVER,
            wait_for_person=patient,
            request_id=request_id,
        )
    print_json(answer)
    for request in answer.permission_requests:
        for line in hint(request):
            renderer.note(line, "yellow")
    if answer.turn.state != Turn.SUCCEEDED:
        raise FailedError


def watch(
    context: typer.Context,
    session: SessionArgument,
    from_sequence: Annotated[
        int,
        typer.Option(
            "--from", min=1, max=2**63 - 1, help="Begin with this event's sequence.", metavar="SEQUENCE"
        ),
    ] = 1,
    until_idle: Annotated[
        bool,
        typer.Option(
            "--until-idle",
            help="End when no turn is queued, running or waiting; one that waits for an answer is not over.",
        ),
    ] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Ask the agent's questions in this terminal.")] = False,
    deltas: Annotated[bool, typer.Option(help="Show text as it is written, not by finished blocks.")] = True,
    thinking: Thinking = True,
    timeout: Timeout = None,
    output: Output = None,
) -> None:
    """Look on: what happened in a session, then what happens. Survives lost connections.

    With -o json every event and every piece of text is one line.

    \b
    Examples:
      ai-agent sessions watch demo
      ai-agent sessions watch demo --until-idle -o json --no-deltas > events.ndjson
      ai-agent sessions watch demo --from 120
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        identity = await session_id(client, session)
        if ask and (invocation.as_json or not person_present()):
            raise UsageError("--ask needs a terminal")
        out = invocation.out
        renderer = Renderer(
            out,
            invocation.notes if invocation.as_json else out,
            session_id=identity,
            thinking=thinking,
            history=True,
        )
        conversation = Conversation(
            invocation, client, identity, renderer,
            asking=ask, patient=True, stream_json=invocation.as_json, deltas=deltas,
        )  # fmt: skip
        async with _bounded(timeout):
            await conversation.follow(WatchCursor(sequence=from_sequence - 1), until_idle=until_idle)

    invocation.run(work)


def interrupt(
    context: typer.Context,
    session: SessionArgument,
    turn: Annotated[
        str, typer.Option("--turn", help="This turn, not the current one.", show_default=False)
    ] = "",
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; for the log.", show_default=False)] = "",
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
    output: Output = None,
) -> None:
    """Stop the turn that runs. The session takes the next message and still knows the conversation.

    \b
    Example:
      ai-agent sessions interrupt demo
    """
    invocation = Invocation.of(context, output)

    async def work(client: Client) -> None:
        with invocation.busy("stopping"):
            identity = await session_id(client, session)
            stopped = await client.sessions.interrupt(identity, turn_id=turn, reason=reason)
            if wait and stopped.state not in FINAL_STATES:
                stopped = (
                    await client.sessions.wait_turn(
                        identity, stopped.id, wait_seconds=60, wait_for_person=True
                    )
                ).turn
        over = stopped.state in FINAL_STATES
        invocation.result(stopped, lambda: word(Turn.State, stopped.state) if over else "being interrupted")

    invocation.run(work)


@asynccontextmanager
async def _bounded(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise FailedError(f"no end within {seconds:g} s; the turn goes on") from error


def _message(text: str) -> str:
    if text != "-":
        if not text.strip():
            raise typer.BadParameter("the message is empty")
        return text
    if sys.stdin.isatty():
        print("the message, then Ctrl-D:", file=sys.stderr)
    try:
        read = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter("what came on standard input is not UTF-8 text") from error
    if not read.strip():
        raise typer.BadParameter("there is no message on standard input")
    return read
