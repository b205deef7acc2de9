"""Work beside what a process is for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from services.kernel.context import detached


class Background:
    """Work beside what a process is for: begun together, ended together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begins work that ends when it is cancelled."""
        self._tasks.append(asyncio.create_task(work, name=f"scheduler-{name}", context=detached()))

    async def end(self) -> None:
        """Ends all of it."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
