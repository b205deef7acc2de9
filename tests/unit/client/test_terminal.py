"""The `ai-agent` command on a terminal: questions, Ctrl-C, hidden passwords."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.unit.client.scripted_server import PASSWORD, ScriptedServer
from tests.unit.client.scripted_session import Log, echo
from tests.unit.client.terminal import CommandLine, Terminal
from tests.unit.client.test_command_line import asking, bash

pytestmark = pytest.mark.unit


class Desk:
    """Opens terminals and closes them at the end."""

    def __init__(self, command: CommandLine) -> None:
        self.command = command
        self.terminals: list[Terminal] = []

    async def open(self, *arguments: str) -> Terminal:
        self.terminals.append(await self.command.open(*arguments))
        return self.terminals[-1]


@pytest_asyncio.fixture
async def desk(server: ScriptedServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """A desk with a login."""
    command = CommandLine(server.url, tmp_path / "config")
    assert (await command.run("auth", "login", "ada", "--password-stdin", stdin=PASSWORD)).code == 0
    made = Desk(command)
    yield made
    for terminal in made.terminals:
        await terminal.close()


async def test_a_password_is_asked_for_and_not_shown(server: ScriptedServer, desk: Desk) -> None:
    terminal = await desk.open("auth", "login")
    await terminal.until("E-mail address or user name:")
    terminal.type("ada@example.org\n")
    await terminal.until("Password: ")  # its blank comes when nothing typed is shown any more
    terminal.type(PASSWORD + "\n")
    assert await terminal.end() == 0
    assert PASSWORD not in terminal.shown
    assert server.calls["Login"][-1].email == "ada@example.org"


async def test_ctrl_c_leaves_a_prompt(desk: Desk) -> None:
    terminal = await desk.open("auth", "login")
    await terminal.until("user name:")
    assert await terminal.leave() != 0


async def test_a_question_is_asked_and_answered(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    log = server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("The agent wants to run Bash")
    await terminal.until("command: make test")
    await terminal.until("Allow? [y]es once, [n]o:")
    terminal.type("what?\n")
    await terminal.until("Allow?")
    terminal.type("y\n")
    await terminal.until("It ran.")
    assert await terminal.end() == 0
    assert next(iter(log.requests.values())).state == 2
    assert "✓ done" in terminal.shown


async def test_a_denial_carries_its_reason(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    log = server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("Allow?")
    terminal.type("n\n")
    await terminal.until("Why?")
    terminal.type("too slow\n")
    await terminal.until("It did not run.")
    assert await terminal.end() == 0
    assert next(iter(log.requests.values())).reason == "too slow"


async def test_a_queued_message_says_so_and_what_the_turn_before_it_waits_for(
    server: ScriptedServer, desk: Desk
) -> None:
    server.agent = asking
    log = server.new_log("demo")
    await desk.command.run("sessions", "query", "demo", "Run the tests", "--no-wait")
    [request_id] = log.requests
    server.agent = echo
    terminal = await desk.open("sessions", "query", "demo", "And now say hello")
    await terminal.until("· queued behind 1 other turn\n")
    await terminal.until(f"ai-agent sessions approve {log.session.id} {request_id}")
    # The spinner turns, though the stream has brought the message: it starts nothing yet.
    for _ in range(5):
        await terminal.until("queued")
    await log.resolve(request_id, "ALLOWED")
    await terminal.until("Hello from the agent.")
    assert await terminal.end() == 0
    assert "starting" not in terminal.shown
    assert "It ran." not in terminal.shown


async def test_what_was_typed_before_the_question_is_no_answer(server: ScriptedServer, desk: Desk) -> None:
    go = asyncio.Event()

    async def later(log: Log, turn_id: str) -> None:
        await log.say(turn_id, 1, "Wait.")
        await go.wait()
        await asking(log, turn_id)

    server.agent = later
    log = server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("Wait.")
    terminal.type("y\n")
    await terminal.until("y\n")
    go.set()
    await terminal.until("Allow?")
    assert next(iter(log.requests.values())).state == 1
    terminal.type("n\n")
    await terminal.until("Why?")
    terminal.type("\n")
    assert await terminal.end() == 0


async def test_a_question_answered_elsewhere_is_withdrawn(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    log = server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("Allow?")
    await log.resolve(next(iter(log.requests)), "ALLOWED")
    await terminal.until("✓ allowed")
    await terminal.until("It ran.")
    assert await terminal.end() == 0


async def test_two_questions_are_asked_one_after_the_other(server: ScriptedServer, desk: Desk) -> None:
    async def two(log: Log, turn_id: str) -> None:
        first, second = bash("make one"), bash("make two")
        second.tool_use_id = "tool-2"
        await log.event(turn_id, tool_use=first)
        await log.event(turn_id, tool_use=second)
        answers = await asyncio.gather(log.ask(turn_id, first), log.ask(turn_id, second))
        await log.say(turn_id, 1, f"{answers}")
        await log.end(turn_id)

    server.agent = two
    server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run both")
    await terminal.until("command: make one")
    await terminal.until("Allow?")
    terminal.type("y\n")
    await terminal.until("command: make two")
    await terminal.until("Allow?")
    terminal.type("n\n")
    await terminal.until("Why?")
    terminal.type("\n")
    await terminal.until("[True, False]")
    assert await terminal.end() == 0


async def test_old_questions_are_not_asked_again(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    log = server.new_log("demo")
    await desk.command.run("sessions", "query", "demo", "Run the tests", "--no-wait")
    await log.resolve(next(iter(log.requests)), "ALLOWED")
    while log.running:
        async with log.grown:
            await log.grown.wait()
    terminal = await desk.open("sessions", "watch", "demo", "--ask", "--until-idle")
    assert await terminal.end() == 0
    assert "Allow?" not in terminal.shown
    assert "It ran." in terminal.shown


async def test_the_first_ctrl_c_stops_the_turn(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    server.new_log("demo")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("Allow?")
    terminal.press_control_c()
    await terminal.until("■ interrupted")
    assert await terminal.end() == 1
    assert len(server.calls["InterruptTurn"]) == 1


async def test_the_second_ctrl_c_leaves(server: ScriptedServer, desk: Desk) -> None:
    server.agent = asking
    log = server.new_log("demo")
    server.silent.add("InterruptTurn")
    terminal = await desk.open("sessions", "query", "demo", "Run the tests")
    await terminal.until("Allow?")
    terminal.press_control_c()
    await terminal.until("Ctrl-C again")
    terminal.press_control_c()
    await terminal.until("left; the turn goes on")
    assert await terminal.end() == 130
    assert log.running


async def test_ctrl_c_leaves_a_watch(server: ScriptedServer, desk: Desk) -> None:
    log = server.new_log("demo")
    await log.event(notice={"message": "something happened"})
    terminal = await desk.open("sessions", "watch", "demo")
    await terminal.until("something happened")
    terminal.press_control_c()
    assert await terminal.end() == 130
    assert "Traceback" not in terminal.shown


async def test_a_message_from_a_pipe_still_has_its_questions_asked(
    server: ScriptedServer, desk: Desk
) -> None:
    server.agent = asking
    server.new_log("demo")
    read, write = os.pipe()
    os.write(write, b"Run the tests")
    os.close(write)
    terminal = await desk.open("sessions", "query", "demo", "-")
    os.close(read)
    # On a terminal the message is typed.
    await terminal.until("Ctrl-D")
    terminal.type("Run the tests\n\x04")
    await terminal.until("Allow?")
    terminal.type("y\n")
    assert await terminal.end() == 0
    assert server.calls["SendMessage"][0].message == "Run the tests\n"
