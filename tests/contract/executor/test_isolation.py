"""What the sandbox shows: run for real, with a probe in place of the CLI's work."""

from __future__ import annotations

import asyncio
import os
import re
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
    token = gateway.admit()
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


async def test_what_only_looks_like_a_repository_starts_no_program(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    started = place.workspace / "started"
    program = place.workspace / "start"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    script = (
        "git init -q --bare bare && cd bare && set() { git config --file config $@; } && set core.worktree . && "
        "set core.bare false && set core.fsmonitor ../start && git status; cd .. && "
        "git init -q real && cd real && git status --short && echo a real one serves"
    )
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert "safe.bareRepository" in seen
    assert "a real one serves" in seen
    assert not started.exists()


async def test_what_lies_in_memory_is_bounded(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    bounded = isolation.choose(chosen.kind.lower(), directory / "state", max_tmp_bytes=3 << 20)
    script = """
    for place in $(awk '$3 == "tmpfs" { print $2 }' /proc/mounts) /var/tmp; do
        head -c 4000000 /dev/zero 2>/dev/null > $place/fill && echo "$place holds it all"
    done
    for place in /tmp /var/tmp /dev/shm; do rm -f $place/fill; echo small > $place/small; done; cat /var/tmp/small
    """
    assert await inside(bounded, place, directory, script, monkeypatch) == "small\n"


async def test_an_agent_makes_no_namespaces_of_users(
    strongest: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if strongest.kind != "BUBBLEWRAP":
        pytest.skip("bubblewrap does not work on this machine")
    seen = await inside(strongest, place, directory, "unshare --user --map-root-user id -u", monkeypatch)
    assert "unshare failed" in seen


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


# What an agent may try to get behind the cover: each line prints what it finds there.
_UNCOVER = """
state={directory}/state
python=$(command -v python3 || command -v python3.12)
umount -l $state; umount -l /run; umount -l /proc
nsenter --target 1 --mount -- cat $state/secrets.json
cat /proc/1/root$state/secrets.json /proc/self/root$state/secrets.json /proc/1/cwd/../../secrets.json
mkdir -p m; mount --bind {directory} m && cat m/state/secrets.json
mount -t proc none m; mount -o remount,rw /
unshare --user --map-root-user --mount sh -c "umount -l $state; mount --bind {directory} m; \
  cat $state/secrets.json m/state/secrets.json; umount -l / ; cat $state/secrets.json"
$python - <<END
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
state = b"{directory}/state"
print("umount2", libc.umount2(state, 2))
print("setns", libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0))
print("open_tree", libc.syscall(428, -100, b"{directory}", 1))
END
cat $state/secrets.json
grep Cap /proc/self/status
"""


async def test_the_state_directory_cannot_be_uncovered(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    script = _UNCOVER.replace("{directory}", str(directory))
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert "DATABASE-PASSWORD" not in seen
    for call in ("umount2", "setns", "open_tree"):
        assert f"{call} -1" in seen, seen
    capabilities = re.findall(r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\s*(\w+)", seen)
    assert len(capabilities) == 5, seen
    # bubblewrap leaves the bounding set, which is worth nothing under no_new_privs.
    counted = capabilities if chosen.kind == "PROCESS" else capabilities[:3]
    assert {int(mask, 16) for mask in counted} == {0}


async def test_other_processes_cannot_be_traced_or_signalled(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    script = (
        f"kill -0 {os.getpid()} && echo signalled; cat /proc/{os.getpid()}/root/etc/hostname && echo root; "
        f'$(command -v python3 || command -v python3.12) -c "import ctypes; '
        f"print('ptrace', ctypes.CDLL(None).ptrace(16, {os.getpid()}, 0, 0))\""
    )
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert "signalled" not in seen
    assert "root" not in seen.split()
    assert "ptrace -1" in seen


async def test_nothing_is_written_outside_whoever_owns_it(
    chosen: Isolation, place: AgentPlace, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    if "nothing is hidden" in chosen.unprotected():
        pytest.skip("this machine has no namespaces")
    outside = directory / f"outside-{uuid4().hex}"
    outside.write_text("as it was")
    files = [str(outside), f"{Path.cwd()}/x-{uuid4().hex}", "/etc/hostname", "/proc/sys/vm/swappiness"]
    # In bubblewrap the others are made for the agent alone.
    folders = "/ /usr /etc /root /home /run /sys/fs/cgroup" if chosen.kind == "PROCESS" else "/usr"
    script = (
        f"for f in {' '.join(files)}; do [ -e $f ] && (echo x >> $f) 2>/dev/null && echo wrote:$f; done; "
        f"for d in {folders}; do (echo x > $d/escape) 2>/dev/null && echo wrote:$d; done; "
        "find /dev -type b; for f in /tmp/x /var/tmp/x; do echo x > $f || echo no:$f; done; "
        "echo x > /dev/null && echo null"
    )
    seen = await inside(chosen, place, directory, script, monkeypatch)
    assert outside.read_text() == "as it was"
    assert "wrote:" not in seen
    assert "/dev/" not in seen
    assert "no:/tmp" not in seen
    assert "null" in seen


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


async def test_bubblewrap_is_in_a_session_of_its_own(
    place: AgentPlace, strongest: Isolation, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the caller's session it could type on the terminal of whoever has started the executor (TIOCSTI)."""
    if strongest.kind != "BUBBLEWRAP":
        pytest.skip("bubblewrap does not work on this machine")
    leader = await inside(strongest, place, directory, "cut -d ' ' -f 6 /proc/self/stat", monkeypatch)
    assert int(leader) > 0, "the leader of a session outside has no number here"


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
