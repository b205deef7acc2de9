"""The `ai-agent` command behind pipes: output, exit codes, settings, logins."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from aiagent.events.v1 import content_pb2
from aiagent_client.cli import app
from aiagent_client.cli.settings import Settings
from tests.unit.client.scripted_server import PASSWORD, ScriptedServer
from tests.unit.client.scripted_session import Fault, Log, echo
from tests.unit.client.terminal import CommandLine

pytestmark = pytest.mark.unit


def bash(line: str) -> content_pb2.ToolUse:
    use = content_pb2.ToolUse(tool_use_id="tool-1", tool_name="Bash")
    use.input.update({"command": line})
    return use


async def asking(log: Log, turn_id: str) -> None:
    """An agent that asks whether it may run a command."""
    use = bash("make test")
    await log.event(turn_id, tool_use=use)
    allowed = await log.ask(turn_id, use)
    await log.say(turn_id, 1, "It ran." if allowed else "It did not run.")
    await log.end(turn_id)


# pure: no server


def every_command() -> list[list[str]]:
    found = [[]]
    root = get_command(app)
    for name, group in root.commands.items():  # type: ignore[attr-defined]
        found.append([name])
        found.extend([name, sub] for sub in group.commands)
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    if len(words) == 2:
        assert f"ai-agent {' '.join(words)}" in result.output or "ai-agent config get-url" in result.output


@pytest.mark.parametrize("command", ["create", "upload"])
def test_help_says_that_the_history_goes_along_and_how_it_does_not(command: str) -> None:
    result = CliRunner().invoke(app, ["sessions", command, "--help"], env={"COLUMNS": "200"})
    assert ".git goes along" in result.output
    assert ".git, whose config may hold credentials" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["sessions", "get"],
        ["sessions", "create", "--mode", "forked"],
        ["sessions", "create", "--directory", "/nowhere/at/all"],
        ["--url", "nonsense", "sessions", "list"],
        ["auth", "login", "ada"],
        ["auth", "login", "ada", "--email", "a@b", "--password-stdin"],
        ["config", "set-url", "localhost"],
        ["sessions", "query", "demo", ""],
        ["sessions", "query", "demo", " \n"],
        ["sessions", "create", "--max-budget-usd", "inf"],
        ["sessions", "create", "--max-budget-usd", "nan"],
        ["sessions", "create", "--max-budget-usd", "-1"],
        ["sessions", "create", "--max-turns", "99999999999"],
        ["sessions", "create", "--allowed-tool", "Bash("],
        ["sessions", "create", "--allowed-tool", " "],
        ["sessions", "create", "--disallowed-tool", "Bash(a)b"],
        ["sessions", "watch", "demo", "--from", f"{10**30}"],
        ["sessions", "list", "--output", "xml"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_2(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments, env={"AIAGENT_CONFIG_DIR": str(tmp_path)}, input="")
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize("word", ["bypass-permissions", "bypass_permissions", "BYPASS_PERMISSIONS"])
def test_words_of_the_contract_are_taken_as_it_writes_them(tmp_path: Path, word: str) -> None:
    arguments = ["sessions", "create", "--permission-mode", word]
    result = CliRunner().invoke(app, arguments, env={"AIAGENT_CONFIG_DIR": str(tmp_path)}, input="")
    assert (result.exit_code, "not logged in" in result.output) == (1, True), result.output


def test_settings(tmp_path: Path) -> None:
    environment = {"AIAGENT_CONFIG_DIR": str(tmp_path / "c"), "AIAGENT_URL": None, "AIAGENT_TOKEN": None}

    def run(*arguments: str, **more: str) -> str:
        result = CliRunner().invoke(app, arguments, env={**environment, **more})
        assert result.exit_code == 0, result.output
        return result.output.strip()

    assert run("config", "get-url") == "http://127.0.0.1:8080"
    assert run("config", "set-url", "https://agents.example.org/") == "https://agents.example.org"
    assert run("config", "get-url") == "https://agents.example.org"
    assert run("config", "get-url", AIAGENT_URL="http://other:1") == "http://other:1"
    assert run("--url", "http://x:2", "config", "get-url", AIAGENT_URL="http://other:1") == "http://x:2"
    assert json.loads(run("config", "show", "-o", "json"))["url_source"].endswith("config.json")
    assert json.loads(run("-o", "json", "config", "reset")) == {"reset": True}
    assert json.loads(run("config", "reset", "-o", "json")) == {"reset": False}
    assert run("config", "get-url") == "http://127.0.0.1:8080"


def test_a_broken_settings_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAGENT_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("AIAGENT_URL", raising=False)
    Settings().path.write_text("{")
    result = CliRunner().invoke(app, ["config", "show"])
    assert result.exit_code == 1
    assert "config reset" in " ".join(result.stderr.split())
    assert CliRunner().invoke(app, ["config", "reset"]).exit_code == 0


# against a server


async def test_login_whoami_refresh_status_logout(server: ScriptedServer, command: CommandLine) -> None:
    file = command.directory / "credentials.json"
    assert file.stat().st_mode & 0o777 == 0o600
    status = await command.run("auth", "status", "-o", "json")
    assert status.code == 0
    assert status.json["account"] == "ada"
    assert "access-1" not in status.out + status.err
    assert (await command.run("auth", "whoami", "-o", "json")).json["email"] == "ada@example.org"
    assert (await command.run("auth", "refresh")).code == 0
    assert len(server.calls["RefreshToken"]) == 1
    assert (await command.run("auth", "logout")).out == "logged out\n"
    assert server.calls["Logout"][0].refresh_token == "refresh-2"
    gone = await command.run("auth", "status")
    assert gone.code == 1
    refused = await command.run("auth", "whoami")
    assert refused.code == 1
    assert "ai-agent auth login" in refused.err
    wrong = await command.run("auth", "login", "ada", "--password-stdin", stdin="wrong\n")
    assert (wrong.code, wrong.out) == (1, "")
    assert "wrong e-mail address, user name or password" in wrong.err


async def test_register_logs_in(server: ScriptedServer, tmp_path: Path) -> None:
    command = CommandLine(server.url, tmp_path / "config")
    done = await command.run(
        "auth",
        "register",
        "-e",
        "eve@example.org",
        "-u",
        "eve",
        "--password-stdin",
        "-o",
        "json",
        stdin=PASSWORD,
    )
    assert done.code == 0, done.err
    assert done.json["email"] == "eve@example.org"
    assert (await command.run("auth", "status")).code == 0


async def test_a_token_from_the_environment(server: ScriptedServer, tmp_path: Path) -> None:
    token = server.tokens()["access_token"]
    command = CommandLine(server.url, tmp_path / "config")
    done = await command.run("auth", "whoami", environment={"AIAGENT_TOKEN": token})
    assert done.code == 0
    assert not (tmp_path / "config").exists() or not list((tmp_path / "config").glob("*.json"))


async def test_many_processes_renew_once(server: ScriptedServer, command: CommandLine) -> None:
    server.valid_access.clear()
    done = await asyncio.gather(*(command.run("auth", "whoami") for _ in range(4)))
    assert [one.code for one in done] == [0, 0, 0, 0], [one.err for one in done]
    assert len(server.calls["RefreshToken"]) == 1


async def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = CommandLine("http://127.0.0.1:1", tmp_path / "config")
    done = await command.run("auth", "login", "ada", "--password-stdin", stdin=PASSWORD)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: no answer from the server at http://127.0.0.1:1;")
    assert len(done.err.splitlines()) == 1


async def test_sessions_from_creation_to_deletion(
    server: ScriptedServer, command: CommandLine, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.txt").write_text("a")
    created = await command.run(
        "sessions", "create", "--name", "demo", "--directory", str(tree), "--permission-mode", "accept-edits",
        "--allowed-tool", "Read", "--allowed-tool", "Bash(git log:*)", "--disallowed-tool", "WebFetch",
        "--max-turns", "7", "--max-budget-usd", "1.5", "--system-prompt", "Be brief.", "--label", "team=x",
        "-o", "json",
    )  # fmt: skip
    assert created.code == 0, created.err
    identity = created.json["id"]
    request = server.calls["CreateSession"][0]
    assert request.sdk_options.permission_mode == request.sdk_options.ACCEPT_EDITS
    assert list(request.sdk_options.allowed_tools) == ["Read", "Bash(git log:*)"]
    assert request.sdk_options.max_budget_usd == 1.5
    assert dict(request.labels) == {"team": "x"}
    assert server.logs[identity].workspace
    server.new_log("evil \x1b[31m[bold]name")
    listed = await command.run("sessions", "list")
    assert identity in listed.out
    assert "\x1b" not in listed.out
    assert "[bold]name" in listed.out
    for meant in (identity, identity[:8], identity[-8:], "demo", identity.upper()):
        assert (await command.run("sessions", "get", meant, "-o", "json")).json["id"] == identity, meant
    nobody = await command.run("sessions", "get", "no-such")
    assert nobody.code == 1
    other = server.new_log("demo").session
    other.state = other.COMPLETED
    other.create_time.FromJsonString("2025-05-04T12:00:00Z")
    ambiguous = await command.run("sessions", "get", "demo")
    assert ambiguous.code == 2
    assert f"  {identity}  demo  created, created 20" in ambiguous.err
    assert f"  {other.id}  demo  completed, created 2025-05-04 " in ambiguous.err
    out = tmp_path / "out"
    assert (await command.run("sessions", "download", identity, str(out))).code == 0
    assert (out / "a.txt").read_text() == "a"
    assert (await command.run("sessions", "download", identity, str(out))).code == 2
    assert (await command.run("sessions", "delete", identity)).code == 2
    assert (await command.run("sessions", "delete", identity, "--yes")).code == 0
    assert identity not in server.logs


async def test_a_session_whose_upload_fails_is_not_kept(
    server: ScriptedServer, command: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    server.faults["UploadWorkspace"] = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "WORKSPACE_TOO_LARGE")]
    done = await command.run("sessions", "create", "-d", str(tmp_path / "tree"))
    assert done.code == 1
    assert "WORKSPACE_TOO_LARGE" in done.err
    assert not server.logs


async def test_in_a_pipe_the_text_alone_is_the_output(server: ScriptedServer, command: CommandLine) -> None:
    server.new_log("demo")
    done = await command.run("sessions", "query", "demo", "-", stdin="Say hello.\n")
    assert done.code == 0, done.err
    assert done.out == "Hello from the agent.\n"
    assert "✓ done" in done.err
    assert server.calls["SendMessage"][0].message == "Say hello.\n"


async def test_query_as_json_is_one_document(server: ScriptedServer, command: CommandLine) -> None:
    server.new_log("demo")
    done = await command.run("sessions", "query", "demo", "Hi", "-o", "json")
    assert (done.code, done.err) == (0, "")
    assert done.json["content"] == "Hello from the agent."
    assert done.json["turn"]["state"] == "SUCCEEDED"


async def test_streams_as_json_are_a_document_a_line(server: ScriptedServer, command: CommandLine) -> None:
    server.new_log("demo")
    done = await command.run("sessions", "query", "demo", "Hi", "-o", "json", "--stream")
    assert done.code == 0
    kinds = ["".join(line) for line in done.lines]
    assert kinds[0] == "event"
    assert "delta" in kinds
    server.faults["WatchSession"] = [Fault(grpc.StatusCode.UNAVAILABLE, "DRAINING", after=2)]
    watched = await command.run("sessions", "watch", "demo", "--until-idle", "-o", "json", "--from", "2")
    assert watched.code == 0
    assert [int(line["event"]["sequence"]) for line in watched.lines if "event" in line] == [2, 3]
    finished = await command.run("sessions", "watch", "demo", "--until-idle", "--no-deltas", "-o", "json")
    assert [*map(list, finished.lines)] == [["event"]] * 3
    shown = await command.run("sessions", "watch", "demo", "--until-idle")
    assert "> Hi" in shown.out
    assert "Hello from the agent." in shown.out


async def test_a_turn_that_fails_is_1(server: ScriptedServer, command: CommandLine) -> None:
    async def fails(log: Log, turn_id: str) -> None:
        await log.end(
            turn_id, "FAILED", failure={"reason": "CLI_DIED", "message": "the agent's process ended"}
        )

    server.agent = fails
    server.new_log("demo")
    done = await command.run("sessions", "query", "demo", "Hi")
    assert (done.code, done.out) == (1, "")
    assert "the agent's process ended" in done.err
    as_json = await command.run("sessions", "query", "demo", "Hi", "-o", "json")
    assert as_json.code == 1
    assert as_json.json["turn"]["state"] == "FAILED"


async def test_without_a_terminal_a_question_ends_the_wait_and_says_how_to_answer(
    server: ScriptedServer, command: CommandLine
) -> None:
    server.agent = asking
    log = server.new_log("demo")
    done = await command.run("sessions", "query", "demo", "Run the tests")
    assert done.code == 1
    [request_id] = log.requests
    assert f"ai-agent sessions approve {log.session.id} {request_id}" in done.err
    listed = await command.run("sessions", "permissions", "demo", "-o", "json")
    assert listed.json[0]["tool_use"]["input"]["command"] == "make test"
    approved = await command.run("sessions", "approve", "demo", "--reason", "fine")
    assert (approved.code, approved.out) == (0, "allowed: Bash make test\n")
    again = await command.run("sessions", "approve", "demo")
    assert again.code == 1
    assert "no open question" in again.err


async def test_it_can_wait_for_somebody_else(server: ScriptedServer, command: CommandLine) -> None:
    server.agent = asking
    log = server.new_log("demo")
    waiting = asyncio.create_task(
        command.run("sessions", "query", "demo", "Run the tests", "--wait-for-person")
    )
    while not log.requests:
        async with log.grown:
            await log.grown.wait()
    denied = await command.run("sessions", "deny", log.session.id[:8], "-r", "not now", "-o", "json")
    assert denied.json["state"] == "DENIED"
    done = await waiting
    assert (done.code, done.out) == (0, "It did not run.\n")


@pytest.mark.parametrize("options", [[], ["-o", "json"], ["--no-wait"]], ids=" ".join)
async def test_behind_a_turn_that_waits_the_answer_it_waits_for_is_told(
    server: ScriptedServer, command: CommandLine, options: list[str]
) -> None:
    server.agent = asking
    log = server.new_log("demo")
    await command.run("sessions", "query", "demo", "Run the tests", "--no-wait")
    [request_id] = log.requests
    server.agent = echo
    waiting = asyncio.create_task(command.run("sessions", "query", "demo", "Hi", *options))
    while not server.calls["ListPermissionRequests"]:
        async with log.grown:
            await log.grown.wait_for(lambda: len(log.turns) == 2)
        await asyncio.sleep(0.01)
    await log.resolve(request_id, "ALLOWED")
    done = await waiting
    assert done.code == 0, done.err
    assert "· queued behind 1 other turn\n" in done.err
    assert f"ai-agent sessions approve {log.session.id} {request_id}" in done.err


async def test_a_question_that_comes_while_a_message_is_queued_is_told(
    server: ScriptedServer, command: CommandLine
) -> None:
    go = asyncio.Event()

    async def later(log: Log, turn_id: str) -> None:
        await go.wait()
        await asking(log, turn_id)

    server.agent = later
    log = server.new_log("demo")
    await command.run("sessions", "query", "demo", "Run the tests", "--no-wait")
    server.agent = echo
    waiting = asyncio.create_task(command.run("sessions", "query", "demo", "Hi"))
    while not server.calls["WatchSession"]:
        await asyncio.sleep(0.01)
    go.set()
    while len(server.calls["ListPermissionRequests"]) < 2:
        await asyncio.sleep(0.01)
    [request_id] = log.requests
    await log.resolve(request_id, "ALLOWED")
    done = await waiting
    assert (done.code, done.out) == (0, "Hello from the agent.\n")
    assert done.err.count(f"ai-agent sessions approve {log.session.id} {request_id}") == 1


async def test_no_wait_and_timeout(server: ScriptedServer, command: CommandLine) -> None:
    server.agent = asking
    log = server.new_log("demo")
    sent = await command.run("sessions", "query", "demo", "Hi", "--no-wait")
    assert sent.out.strip() == log.turns[0].id
    late = await command.run("sessions", "watch", "demo", "--timeout", "1")
    assert late.code == 1
    assert "the turn goes on" in late.err


async def test_history_and_interruption(server: ScriptedServer, command: CommandLine) -> None:
    server.agent = asking
    server.new_log("demo")
    await command.run("sessions", "query", "demo", "Do it", "--no-wait")
    calls = await command.run("sessions", "tool-calls", "demo")
    assert "make test" in calls.out
    messages = await command.run("sessions", "messages", "demo")
    assert "Do it" in messages.out
    stopped = await command.run("sessions", "interrupt", "demo", "-o", "json")
    assert stopped.json["state"] == "INTERRUPTED"


async def test_an_interruption_that_takes_its_time(server: ScriptedServer, command: CommandLine) -> None:
    server.agent = asking
    server.stops_at_once = False
    log = server.new_log("demo")
    await command.run("sessions", "query", "demo", "Do it", "--no-wait")
    assert (await command.run("sessions", "interrupt", "demo", "--no-wait")).out == "being interrupted\n"
    assert log.running
    assert (await command.run("sessions", "interrupt", "demo")).out == "interrupted\n"


async def test_errors_as_json_go_to_standard_error(server: ScriptedServer, command: CommandLine) -> None:
    server.faults["GetSession"] = [
        Fault(
            grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", violations=(("session_id", "must be a UUID"),),
        )
    ]  # fmt: skip
    log = server.new_log("demo")
    done = await command.run("sessions", "get", log.session.id, "-o", "json")
    assert (done.code, done.out) == (1, "")
    error = json.loads(done.err)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert error["field_violations"][0]["field"] == "session_id"
    assert error["request_id"] == "served-1"
