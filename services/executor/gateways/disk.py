"""Keeps agents from filling a file system that others live on, the database among them: looks once a second.

Quotas need a file system that was set up for them, and RLIMIT_FSIZE is each file's own. So: where little is left, an
agent that goes on writing is ended, by what the kernel has counted for its processes (proc_pid_io(5)).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 1.0
SPARED_BYTES: Final = 8 << 20
"""What an agent may still write where little is left: its conversation, and what a tool was about to finish."""


def free(place: Path) -> int:
    """Returns the bytes that an ordinary user may still write on the file system of a place."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def written(pids: Iterable[int]) -> int:
    """Returns the bytes that processes, and those of their children that have ended, have written to disks."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/io").read_bytes().splitlines():
                if line.startswith(b"write_bytes:"):
                    total += int(line.split()[1])
    return total


async def until_filling(least_bytes: int, place: Path, pids: Callable[[], list[int]]) -> int:
    """Waits until processes write although there is too little room.

    Args:
        least_bytes: What has to stay free; 0 waits for ever.
        place: On which file system.
        pids: Finds the processes; called in a thread.

    Returns:
        How much is free, in bytes.
    """
    if not least_bytes:
        await asyncio.Event().wait()
    before: int | None = None
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        left = await asyncio.to_thread(free, place)
        if left >= least_bytes:
            before = None
            continue
        now = await asyncio.to_thread(lambda: written(pids()))
        if before is None:
            before = now
        elif now - before > SPARED_BYTES:
            return left
