"""What an agent finds when it looks for what is not its own: nothing."""

from __future__ import annotations

import json

import psutil
import pytest

from aiagent.session.v1 import session_service_pb2

from .conftest import User, state_name
from .script import prompt, say, use

pytestmark = pytest.mark.e2e


async def _bash(user: User, session_id: str, command: str) -> str:
    turn = await user.run(session_id, prompt(use("Bash", command=command, timeout=100000), say("x")), 120)
    assert state_name(turn) == "SUCCEEDED", turn
    calls = await user.call(
        user.sessions.ListToolCalls,
        session_service_pb2.ListToolCallsRequest(session_id=session_id, turn_id=turn.id),
    )
    return str(calls.tool_calls[0].result.content.text)


def _secrets(suite) -> list[str]:
    found: list[str] = []

    def collect(value) -> None:
        if isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, str) and len(value) >= 16:
            found.append(value)

    collect(json.loads((suite.state_dir / "secrets.json").read_text()))
    found.append((suite.state_dir / "admin-password").read_text().strip())
    assert len(found) > 8
    return found


async def test_no_secret_is_to_be_found(suite, user: User, stranger: User):
    other = await stranger.create()
    await stranger.run(
        other, prompt(use("Write", file_path="private.txt", content="STRANGERS-OWN"), say("x"))
    )
    session_id = await user.create()
    seen = await _bash(
        user,
        session_id,
        "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '; "
        f"ls -laR {suite.state_dir} 2>&1 | head -200; find / -xdev -readable -type f -size -64k "
        "-not -path '/usr/*' -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null | head -2000 | "
        "xargs -d '\\n' cat 2>/dev/null | tr -d '\\0' | head -c 3000000",
    )
    for secret in _secrets(suite):
        assert secret not in seen
    assert "STRANGERS-OWN" not in seen
    assert other not in seen
    assert session_id in seen, "the search itself saw something"
    # Nothing of the host's processes: a handful in the sandbox's own namespace.
    processes = await _bash(user, session_id, "ls -d /proc/[0-9]* | wc -l; cat /proc/[0-9]*/comm")
    assert "postgres" not in processes
    assert "envoy" not in processes
    assert "valkey" not in processes


async def test_no_port_of_the_suite_is_to_be_reached(suite, user: User):
    session_id = await user.create()
    ports = {
        connection.laddr.port
        for process in [*suite.processes(), psutil.Process(suite.process.pid)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    # PostgreSQL, Valkey, Envoy, the model gateway, and the three services.
    assert len(ports) >= 7
    tries = "; ".join(f"(echo > /dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo open:{port}" for port in ports)
    seen = await _bash(user, session_id, f"{tries}; cat /proc/net/tcp; ls /run; find / -type s 2>/dev/null")
    assert "open:" not in seen
    # What listens inside is the way to the model gateway alone: port 8788 is 2254 in hexadecimal.
    listening = [line.split()[1] for line in seen.splitlines() if " 0A " in line]
    assert listening == ["0100007F:2254"]
    assert "envoy.sock" not in seen
    guess = "curl -s -m 5 http://127.0.0.1:8788/v1/messages -d '{}' -H 'x-api-key: guess'"
    assert "authentication_error" in await _bash(user, session_id, guess)


async def test_only_the_own_workspace_can_be_written(user: User):
    session_id = await user.create()
    seen = await _bash(
        user,
        session_id,
        "for d in / /usr /usr/bin /etc /opt /proc/sys/kernel; do "
        "(echo x > $d/escape-attempt) 2>/dev/null && [ $d != / ] && echo wrote:$d; done; echo ok > mine && cat mine",
    )
    assert "wrote:/usr" not in seen
    assert "ok" in seen


async def test_a_link_out_of_the_workspace_shows_nothing_to_a_download(user: User):
    session_id = await user.create()
    await _bash(user, session_id, "ln -s /etc/passwd passwd; ln -s / everything; echo mine > mine")
    async with user.http() as http:
        packed = await http.get(f"/api/v1/sessions/{session_id}/workdir/download", params={"format": "zip"})
        assert packed.status_code == 200
        assert b"mine" in packed.content
        assert b"root:" not in packed.content
        through = await http.get(
            f"/api/v1/sessions/{session_id}/workdir/download", params={"path": "everything/etc"}
        )
        assert through.status_code == 400


async def test_nothing_in_the_workspace_configures_the_agent(user: User):
    session_id = await user.create()
    hook = {
        "hooks": {"PreToolUse": [{"matcher": "*", "hooks": [{"type": "command", "command": "touch pwned"}]}]}
    }
    servers = {"mcpServers": {"evil": {"command": "touch", "args": ["pwned-mcp"]}}}
    await user.run(
        session_id,
        prompt(
            use("Write", file_path=".claude/settings.json", content=json.dumps(hook)),
            use("Write", file_path=".mcp.json", content=json.dumps(servers)),
            say("x"),
        ),
    )
    # Another agent process for the same workspace, since the options have changed.
    change = session_service_pb2.UpdateSessionRequest(session_id=session_id)
    change.sdk_options.permission_mode = 4
    change.sdk_options.max_turns = 7
    change.update_mask.paths.append("sdk_options")
    await user.call(user.sessions.UpdateSession, change)
    seen = await _bash(user, session_id, "ls -a; ls -a .claude")
    assert "settings.json" in seen
    assert "pwned" not in seen
