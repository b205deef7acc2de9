"""Renders the prompts of schedules ahead of their fires: a fire then costs no rendering, and waits for none.

A prompt is made of a task's template and a schedule's variables alone. Whoever changes either marks the prompt as
stale, in the same transaction; nothing of the schedule fires until it is rendered, which happens here at once. If this
process dies before it has recorded a prompt, that one is as stale as before, and another replica renders it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import batched
from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.supervision import BACKGROUND_FAILURES
from services.scheduler.domain.runs import Failure
from services.scheduler.domain.templates import Renderer
from services.scheduler.domain.variables import storable
from services.scheduler.usecases.firing.due_loop import Aside
from services.scheduler.usecases.firing.ports import Prompts, StalePrompt, Unreadable
from services.scheduler.usecases.prompts import render

_log = structlog.get_logger(__name__)
LOOK_SECONDS: Final = 30.0
AT_ONCE: Final = 20
TOGETHER: Final = 2
"""As many as there are processes that render, and no more: RunTask needs them, too."""
AWAY_SECONDS: Final = 1.0
PROMPT_NOT_RENDERED: Final = "PROMPT_NOT_RENDERED"


class SchedulePrompts:
    """Renders, for ever. Its `wake` may be called from the loop at any time."""

    def __init__(
        self, prompts: Prompts, renderer: Renderer, clock: Clock, rendered: Callable[[], None]
    ) -> None:
        """Args: prompts: those of schedules; renderer: renders them; clock: for waiting; rendered: told of each
        batch."""
        self._prompts = prompts
        self._renderer = renderer
        self._clock = clock
        self._rendered = rendered
        self._aside = Aside(clock)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Says that a prompt may be stale."""
        self._woken.set()

    async def run(self) -> None:
        """Renders until it is cancelled. While database or renderer are away it waits and tries again."""
        while True:
            self._woken.clear()
            try:
                while await self.render_some():
                    self._rendered()
                set_aside = self._aside.seconds()
                seconds = LOOK_SECONDS if set_aside is None else min(LOOK_SECONDS, set_aside + 0.001)
            except ServiceError as error:
                _log.warning("prompts of schedules are not rendered", reason=error.reason)
                seconds = AWAY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def render_some(self) -> bool:
        """Renders some stale prompts; returns whether there were any.

        What cannot be recorded now, since somebody has locked its task or schedule, is set aside for a while.

        Raises:
            ServiceError: UNAVAILABLE: database or renderer are away.
        """
        found = await self._prompts.stale(AT_ONCE, self._aside.ids())
        for pair in batched(found, TOGETHER):
            await asyncio.gather(*map(self._render_one, pair))
        return bool(found)

    async def _render_one(self, stale: StalePrompt | Unreadable) -> None:
        if isinstance(stale, Unreadable):
            self._fail(stale.id, stale.error)
            return
        try:
            prompt, fault = await self._render(stale)
            if not await self._prompts.keep(stale, prompt, fault):
                self._aside.put(stale.schedule.id)
        except ServiceError:
            raise
        except Exception as error:
            # Whatever one tenant's template has brought about: the others' are rendered.
            self._fail(stale.schedule.id, error)

    def _fail(self, schedule_id: UUID, error: Exception) -> None:
        BACKGROUND_FAILURES.labels("schedule-prompt").inc()
        _log.error("prompt of a schedule not rendered", schedule_id=str(schedule_id), exc_info=error)
        self._aside.put(schedule_id)

    async def _render(self, stale: StalePrompt) -> tuple[str | None, Failure | None]:
        try:
            rendered = await render(self._renderer, stale.task, stale.schedule.content.variables)
        except ServiceError as error:
            if error.kind is not ErrorKind.INVALID_ARGUMENT:
                raise
            why = "; ".join(f"{found.field} {found.description}" for found in error.violations)
            return None, Failure(PROMPT_NOT_RENDERED, storable(why or str(error)))
        return rendered.content.prompt, None
