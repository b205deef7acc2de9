"""Finds the suite's processes in the process table: those to strike, and those that should not be there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

import psutil

from .records import Leftover

SUPERVISED = ("session", "executor", "auth", "scheduler", "valkey", "postgres", "envoy")
"""What the supervisor starts again, by kind."""
_SERVERS = {"valkey-server": "valkey", "postgres": "postgres", "envoy": "envoy"}


def supervised(supervisor: psutil.Process, kind: str) -> list[psutil.Process]:
    """The processes of a kind that the supervisor has started, the oldest first."""
    found = []
    for child in _children(supervisor, recursive=False):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and _kind(child) == kind:
                found.append((child.create_time(), child.pid, child))
    return [child for _, _, child in sorted(found, key=lambda entry: entry[:2])]


def _kind(process: psutil.Process) -> str:
    command = process.cmdline()
    for part in command[1:3]:
        if part.startswith("services."):
            return part.removeprefix("services.")
    return _SERVERS.get(process.name(), "")


def listens(process: psutil.Process) -> bool:
    """Whether a process takes connections."""
    with suppress(psutil.Error):
        return any(
            connection.status == psutil.CONN_LISTEN for connection in process.net_connections(kind="tcp")
        )
    return False


def clis(supervisor: psutil.Process) -> list[psutil.Process]:
    """The command line tools of Claude Code that run below executors."""
    found = []
    for process in _children(supervisor):
        with suppress(psutil.Error):
            command = process.cmdline()
            if command and command[0].endswith("/claude") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def tools(supervisor: psutil.Process) -> list[psutil.Process]:
    """What runs below those: the tools of agents, and nothing of the sandbox's own."""
    return [tool for cli in clis(supervisor) for tool in tools_of(cli)]


def tools_of(cli: psutil.Process) -> list[psutil.Process]:
    """The tools below one of them."""
    found = []
    for process in _children(cli):
        with suppress(psutil.Error):
            command = process.cmdline()
            # The sandbox's forwarder to the model is a child of the CLI, too.
            forwards = any(part.endswith("/init.py") for part in command[1:4])
            if command and not forwards and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def session_of(process: psutil.Process, session_ids: Collection[str]) -> str:
    """The session that an agent's process belongs to; empty if none."""
    with suppress(psutil.Error):
        text = f"{process.cwd()} {process.environ().get('HOME', '')}"
        return next((session_id for session_id in session_ids if session_id in text), "")
    return ""


def _children(process: psutil.Process, *, recursive: bool = True) -> list[psutil.Process]:
    try:
        return process.children(recursive=recursive)
    except psutil.Error:
        return []


class Family:
    """Remembers every process that the suite ever had, to find those that outlive their place in it."""

    def __init__(self, mark: str) -> None:
        """Args: mark: a text that the suite's processes, and no others, have in command, directory or environment."""
        self._mark = mark
        self._known: dict[tuple[int, float], str] = {}

    def look(self, supervisor: psutil.Process) -> None:
        """Notes who is there."""
        for process in _children(supervisor):
            with suppress(psutil.Error):
                key = (process.pid, process.create_time())
                if key not in self._known:
                    self._known[key] = " ".join(process.cmdline())[:160]

    def outside(self, supervisor: psutil.Process | None) -> Iterator[Leftover]:
        """Those that run, and are not below the supervisor; of a suite that has ended, all that run."""
        inside = {os.getpid()}
        if supervisor is not None:
            inside |= {supervisor.pid} | {child.pid for child in _children(supervisor)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid in inside or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                known = self._known.get((process.pid, process.create_time()))
                if known is not None or self._marked(process):
                    yield Leftover(
                        process.pid, known or " ".join(process.cmdline())[:160], "has no parent left"
                    )

    def _marked(self, process: psutil.Process) -> bool:
        texts = [*process.cmdline()]
        with suppress(psutil.AccessDenied):
            texts += [process.cwd(), *process.environ().values()]
        return any(self._mark in text for text in texts)


def idle_leftovers(supervisor: psutil.Process, session_ids: Collection[str]) -> Iterator[Leftover]:
    """When no turn is open: tools that run all the same, and second agents of one session."""
    seen: dict[str, int] = {}
    for cli in clis(supervisor):
        session_id = session_of(cli, session_ids)
        if session_id in seen:
            yield Leftover(
                cli.pid, session_id, f"a second agent of the session, beside pid {seen[session_id]}"
            )
        seen[session_id] = cli.pid
        for tool in tools_of(cli):
            with suppress(psutil.Error):
                yield Leftover(tool.pid, " ".join(tool.cmdline())[:160], "a tool, with no turn open")
