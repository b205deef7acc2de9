"""The `ai-agent` command where the shell around it is unkind: bytes that are no text, pipes that close, no room."""

from __future__ import annotations

import asyncio
import json
import os
import shlex

import pytest
from typer.testing import CliRunner

from aiagent_client.cli import app
from aiagent_client.cli.application import _for_programs
from tests.unit.client.scripted_server import PASSWORD, ScriptedServer
from tests.unit.client.terminal import COMMAND, CommandLine

pytestmark = pytest.mark.unit
BAD = os.fsdecode(b"a\xff")


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["sessions", "query", "demo", BAD], b""),
        (["sessions", "query", "demo", "-"], b"a\xff\n"),
        (["sessions", "create", "--name", BAD, "-o", "json"], b""),
        (["auth", "login", BAD, "--password-stdin"], PASSWORD.encode()),
        (["config", "set-url", f"http://{BAD}:1"], b""),
        (["--url", f"http://{BAD}:1", "sessions", "list"], b""),
    ],
    ids=["argument", "input", "option", "account", "address", "server"],
)
async def test_bytes_that_are_no_text_are_wrong_use(
    server: ScriptedServer, command: CommandLine, arguments: list[str], stdin: bytes
):
    server.new_log("demo")
    done = await command.run(*arguments, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    if "-o" in arguments:
        assert json.loads(done.err)["error"]["reason"] == "Usage"


@pytest.mark.parametrize("token", ["a\nb", "a\tb", "a b", "é", "\x7f"], ids=ascii)
async def test_what_no_header_may_carry_is_no_token(command: CommandLine, token: str):
    done = await command.run("sessions", "list", environment={"AIAGENT_TOKEN": token})
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: not a token: what AIAGENT_TOKEN holds\n"


async def test_a_stored_login_that_is_no_token_is_told_with_the_way_out(command: CommandLine):
    file = command.directory / "credentials.json"
    file.write_text(file.read_text().replace("access-1", "access\\n1"))
    for arguments in (["sessions", "list"], ["sessions", "watch", "0198c2f0-0000-7000-8000-000000000000"]):
        done = await command.run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: not a token: what is stored")
        assert "`ai-agent auth login`" in done.err
        assert len(done.err.splitlines()) == 1
    assert (await command.run("auth", "logout")).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "json", "sessions", "get"],
        ["sessions", "get", "--output=JSON"],
        ["sessions", "nonsense", "-o", "json"],
        ["sessions", "list", "--nonsense", "-ojson"],
        ["-o", "json"],
    ],
    ids=" ".join,
)
async def test_wrong_use_is_told_to_programs_as_json(command: CommandLine, arguments: list[str]):
    done = await command.run(*arguments)
    assert (done.code, done.out) == (2, "")
    error = json.loads(done.err)["error"]
    assert error["reason"] == "Usage"
    assert error["message"]


def test_only_the_output_option_asks_for_json():
    assert not _for_programs(["sessions", "query", "demo", "json"])
    assert not _for_programs(["sessions", "list", "-o", "table"])


async def test_a_reader_that_goes_away_is_no_fault(server: ScriptedServer, command: CommandLine):
    server.new_log("demo")
    for arguments in (["sessions", "list"], ["sessions", "query", "demo", "Hi"], ["sessions", "--help"]):
        line = f"{shlex.join([*COMMAND, *arguments])} | true"
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", line, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=command.environment,
        )  # fmt: skip
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert b"Traceback" not in err
        assert b"BrokenPipe" not in err


@pytest.mark.parametrize(
    "arguments",
    [["config", "get-url"], ["config", "show", "-o", "json"], ["--help"]],
    ids=" ".join,
)
async def test_output_that_cannot_be_written_is_one_line(command: CommandLine, arguments: list[str]):
    line = f"{shlex.join([*COMMAND, *arguments])} > /dev/full"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env=command.environment,
    )  # fmt: skip
    _, err = await asyncio.wait_for(process.communicate(), 60)
    said = err.decode()
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert "the output cannot be written: No space left on device" in said
    if "-o" in arguments:
        assert json.loads(said)["error"]["reason"] == "Output"


async def test_closed_standard_streams_are_no_fault(command: CommandLine):
    line = f"{shlex.join([*COMMAND, 'config', 'get-url'])} <&- >&-"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, stderr=asyncio.subprocess.PIPE, env=command.environment
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")


async def test_a_narrow_terminal_without_colours(server: ScriptedServer, command: CommandLine):
    server.new_log("demo")
    for arguments in (["sessions", "list"], ["sessions", "get", "demo"], ["sessions", "query", "demo", "Hi"]):
        terminal = await command.open(*arguments, width=20)
        try:
            assert await terminal.end() == 0
            assert "Traceback" not in terminal.shown
        finally:
            await terminal.close()


async def test_left_with_control_c_at_a_prompt_is_130(command: CommandLine):
    for arguments, question in ((["auth", "login"], "name"), (["auth", "login", "ada"], "Password")):
        terminal = await command.open(*arguments)
        try:
            await terminal.until(question)
            assert await terminal.leave() == 130
        finally:
            await terminal.close()


def test_help_fits_a_narrow_terminal():
    result = CliRunner().invoke(app, ["sessions", "create", "--help"], env={"COLUMNS": "20"})
    assert result.exit_code == 0
