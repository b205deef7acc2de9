"""Keeps an agent's memory within a bound: looks once a second at what its processes hold.

Limits of processes do not serve: an idle CLI that holds 0.1 GiB has reserved 9 GiB of addresses (RLIMIT_AS) and 5 GiB
of data (RLIMIT_DATA), and both are each process's own, while an agent is a tree. A control group would be exact, but
most containers may not make one. So: what the kernel reports, summed (proc_pid_status(5)).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 1.0
_KIB: Final = 1024
# What is the process's own; pages of files can be dropped and read again, and the CLI's program alone has 250 MiB.
_HELD: Final = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_SHARE: Final = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


def held(pids: Iterable[int]) -> int:
    """Returns the bytes that processes hold; a page that several share, as after a fork, is counted for each."""
    return sum(_sum(Path(f"/proc/{pid}/status"), _HELD) for pid in pids)


def held_exactly(pids: Iterable[int]) -> int:
    """Returns the bytes that processes hold, shared pages once. Costs the kernel a walk over all of their pages."""
    total = 0
    for pid in pids:
        share = _sum(Path(f"/proc/{pid}/smaps_rollup"), _SHARE)
        # Not ours to read, or gone: the other figure is an upper bound.
        total += share or _sum(Path(f"/proc/{pid}/status"), _HELD)
    return total


def _sum(file: Path, names: tuple[bytes, ...]) -> int:
    found = 0
    with suppress(OSError):
        for line in file.read_bytes().splitlines():
            if line.startswith(names):
                found += int(line.split()[1])
    return found * _KIB


async def until_over(limit_bytes: int, pids: Callable[[], list[int]]) -> int:
    """Waits until processes hold more than they may.

    Args:
        limit_bytes: How much they may hold; 0 waits for ever.
        pids: Finds them; called in a thread.

    Returns:
        How much they hold, in bytes.
    """
    if not limit_bytes:
        await asyncio.Event().wait()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        holding = await asyncio.to_thread(_over, limit_bytes, pids)
        if holding:
            return holding


def _over(limit_bytes: int, pids: Callable[[], list[int]]) -> int:
    found = pids()
    if held(found) <= limit_bytes:
        return 0
    exactly = held_exactly(found)
    return exactly if exactly > limit_bytes else 0
