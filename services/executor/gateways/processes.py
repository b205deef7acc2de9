"""Ends a process with all that it has started, and says when it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LOOK_SECONDS = 0.01


def tree(pid: int) -> list[int]:
    """Returns a process and its descendants, parents first; what is gone by now is left out."""
    found = [pid]
    for parent in found:
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            with suppress(OSError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def frozen_tree(pid: int) -> list[int]:
    """Stops a process with its descendants and returns them: none of them starts another one unseen any more."""
    found: list[int] = []
    while new := [each for each in tree(pid) if each not in found]:
        _send(new, signal.SIGSTOP)
        found += new
    return found


def running(pid: int) -> bool:
    """Whether a process is there and not only its remains."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def carrying(mark: str) -> list[int]:
    """Returns the processes of this user with a text in their environment: those of an agent that nobody's child is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def kill(pids: Iterable[int]) -> None:
    """Kills processes; those that are gone are passed over."""
    _send(pids, signal.SIGKILL)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def end(pids: Iterable[int], timeout_seconds: float) -> bool:
    """Kills processes and waits until they run no more; returns whether they do not."""
    left = list(pids)
    kill(left)
    waited = 0.0
    while left := [pid for pid in left if running(pid)]:
        if waited >= timeout_seconds:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
        waited += _LOOK_SECONDS
    return True
