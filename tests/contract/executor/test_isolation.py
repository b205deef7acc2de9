"""What the sandbox shows: run for real, with a probe in place of the CLI's work."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from services.executor.gateways import isolation
from services.executor.gateways.isolation import AgentPlace, Isolation
from services.executor.gateways.model_gateway import ModelGateway
from services.kernel.errors import ServiceError

pytestmark = pytest.mark.contract


@pytest.fixture
def place(directory: Path, gateway: ModelGateway) -> AgentPlace:
    """A place with a workspace, and a neighbour's beside it."""
    name = uuid4().hex
    for folder in (f"state/workspaces/{name}", f"state/agents/{name}/home", "state/workspaces/neighbour"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    (directory / "state/workspaces/neighbour/private.txt").write_text("NEIGHBOURS-OWN")
    (directory / "state" / "secrets.json").write_text("DATABASE-PASSWORD")
    token, _ = gateway.admit()
    return AgentPlace(
        directory / "state/workspaces" / name,
        directory / "state/agents" / name / "home",
        gateway.socket,
        gateway.port,
        token,
    )


@pytest.fixture(params=["BUBBLEWRAP", "PROCESS"])
def chosen(request: pytest.FixtureRequest, directory: Path, strongest: Isolation) -> Isolation:
    """Each way to start agents that this machine offers."""
    if request.param == "BUBBLEWRAP" and strongest.kind != "BUBBLEWRAP":
        pytest.skip("bubblewrap does not work on this machine")
    if request.param == strongest.kind:
        return strongest
    return isolation.choose("process", directory / "state")


async def inside(
    chosen: Isolation, place: AgentPlace, directory: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Runs a shell script where the CLI would run."""
    probe = directory / "probe"
    probe.write_text('#!/bin/bash\neval "$1"\n')
    probe.chmod(0o755)
    monkeypatch.setattr(isolation, "_CLI", probe)
    launcher = directory / f"launch-{uuid4().hex}"
    chosen.write_launcher(place, launcher)
    process = await asyncio.create_subprocess_exec(
        *(str(launcher), script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ANTHROPIC_API_KEY": "sk-real", "AIAGENT_SERVICE_KEY": "SIGNING-KEY"},
        cwd=place.workspace,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return output.decode(errors="replace")


async def test_the_environment_is_ours_to_the_last_variable(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = await inside(chosen, place, directory, "env -0 | tr '\\0' '\\n'", monkeypatch)
    names = {line.split("=", 1)[0] for line in seen.splitlines()}
    shells_own = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert names - shells_own <= set(chosen.environment(place))
    assert "sk-real" not in seen
    assert "SIGNING-KEY" not in seen


async def test_the_workspace_is_writable_and_stays(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    script = f"pwd; echo written > note.txt; echo kept > {place.home}/kept"
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert seen.strip() == str(place.workspace)
    assert (place.workspace / "note.txt").read_text() == "written\n"
    assert (place.home / "kept").read_text() == "kept\n"


async def test_the_state_directory_is_hidden(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    seen = await inside(
        chosen, place, directory, f"cat {directory}/state/secrets.json; ls {directory}/state", monkeypatch
    )
    assert "DATABASE-PASSWORD" not in seen
    assert "secrets.json" not in seen.replace(f"{directory}/state/secrets.json", "")


async def test_processes_of_the_machine_are_not_seen(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    script = "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert "pytest" not in seen
    assert "SIGNING-KEY" not in seen


async def bubblewrapped(
    strongest: Isolation, place: AgentPlace, directory: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    if strongest.kind != "BUBBLEWRAP":
        pytest.skip("bubblewrap does not work on this machine")
    return await inside(strongest, place, directory, script, monkeypatch)


async def test_bubblewrap_shows_no_neighbour(
    strongest: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    script = (
        f"ls {directory}/state/workspaces; cat {directory}/state/workspaces/*/private.txt; ls / /home /root"
    )
    seen = await bubblewrapped(strongest, place, directory, script, monkeypatch)
    assert "NEIGHBOURS-OWN" not in seen
    assert "neighbour" not in seen
    assert place.workspace.name in seen


async def test_bubblewrap_has_no_network_but_the_gateway(
    strongest: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    script = (
        f"(echo > /dev/tcp/127.0.0.1/{place.gateway_port}) 2>/dev/null && echo host-port; "
        "(echo > /dev/tcp/1.1.1.1/53) 2>/dev/null && echo internet; "
        f"(echo > /dev/tcp/127.0.0.1/{isolation.SANDBOX_PORT}) && echo gateway; ls /sys/class/net 2>/dev/null"
    )
    seen = await bubblewrapped(strongest, place, directory, script, monkeypatch)
    assert seen.split() == ["gateway"]


async def test_bubblewrap_lets_nothing_be_written_outside(
    strongest: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    name = f"x-{uuid4().hex}"
    files = [
        f"/usr/{name}",
        f"/lib/{name}",
        f"/etc/{name}",
        f"/tmp/{name}",
        f"/{name}",
        "/opt/aiagent/claude",
    ]
    script = f"for f in {' '.join(files)}; do (echo x >> $f) 2>/dev/null && echo $f; done"
    seen = await bubblewrapped(strongest, place, directory, script, monkeypatch)
    assert "/usr" not in seen
    assert "/lib" not in seen
    assert "claude" not in seen
    assert not [path for path in files if Path(path).exists()], "what it writes elsewhere goes with it"


async def test_the_launcher_is_its_owners_alone(strongest: Isolation, place: AgentPlace, directory: Path):
    launcher = directory / "launcher"
    strongest.write_launcher(place, launcher)
    assert stat.S_IMODE(launcher.stat().st_mode) == 0o700
    assert place.token in launcher.read_text()


def test_bubblewrap_that_was_asked_for_is_not_replaced_in_silence(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(isolation, "bubblewrap_program", lambda _: Path("/bin/false"))
    with pytest.raises(ServiceError) as error:
        isolation.choose("bubblewrap", directory / "state")
    assert error.value.reason == "ISOLATION_UNAVAILABLE"
    chosen = isolation.choose("auto", directory / "state")
    assert chosen.kind == "PROCESS"
    assert chosen.unprotected(), "what is left open is named"
