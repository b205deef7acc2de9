"""Renders templates in processes of their own, which are bounded in what they take; see `rendering_process`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from services.kernel.errors import unavailable
from services.scheduler.domain.templates import (
    MAX_RENDERED_CHARACTERS,
    TemplateError,
    TemplateFault,
    is_plain,
)
from services.scheduler.domain.variables import storable
from services.scheduler.domain.violations import DOMAIN

_PROGRAM = Path(__file__).with_name("rendering_process.py")
_STARTING_SECONDS: Final = 10.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What reading or rendering one template may take.

    Attributes:
        cpu_seconds: Processor time.
        wall_seconds: Time, should the machine be busy.
        memory_bytes: Address space beyond that of an idle process.
        characters: Length of what a template renders to.
    """

    cpu_seconds: float = 0.5
    wall_seconds: float = 5.0
    memory_bytes: int = 128 * 1024 * 1024
    characters: int = MAX_RENDERED_CHARACTERS


class TemplateProcesses:
    """A `Renderer` with a few processes, started when they are first needed, and again when one is lost.

    A template without tags needs none of them.
    """

    def __init__(self, size: int = 2, limits: RenderLimits | None = None) -> None:
        """Args:

        size: how many templates are rendered at a time.
        limits: of each of them; None for the usual ones.
        """
        self._limits = limits or RenderLimits()
        self._places: asyncio.LifoQueue[_Process | None] = asyncio.LifoQueue()
        for _ in range(size):
            self._places.put_nowait(None)
        self._all: set[_Process] = set()

    async def names_in(self, template: str) -> frozenset[str]:
        """The variables that a template takes from outside; see `Renderer`."""
        if is_plain(template):
            return frozenset()
        return frozenset(await self._ask(template, {"do": "names"}))

    async def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Renders a template; see `Renderer`."""
        if is_plain(template):
            return template.replace("\r\n", "\n").replace("\r", "\n")
        return str(await self._ask(template, {"do": "render", "values": dict(values)}))

    async def start(self) -> None:
        """Starts the processes, so that the first template need not wait a tenth of a second for one."""
        held = [self._places.get_nowait() for _ in range(self._places.qsize())]
        try:
            for index, process in enumerate(held):
                held[index] = process or await self._start()
        finally:
            for process in held:
                self._places.put_nowait(process)

    async def close(self) -> None:
        """Ends the processes."""
        for process in list(self._all):
            await self._end(process)

    async def _ask(self, template: str, request: dict[str, Any]) -> Any:
        content = b"".join(
            len(part).to_bytes(4) + part for part in (template.encode(), json.dumps(request).encode())
        )
        process = await self._places.get()
        try:
            for _ in range(2):
                if process is None:
                    process = await self._start()
                with contextlib.suppress(OSError, EOFError, TimeoutError):
                    answer = await process.ask(content, self._limits.wall_seconds + _STARTING_SECONDS)
                    break
                _log.warning("template process lost")
                await self._end(process)
                process = None
            else:
                raise unavailable(
                    "RENDERER_UNAVAILABLE", "templates cannot be rendered at the moment", domain=DOMAIN
                )
        except BaseException:
            # An answer that nobody waited for would be taken for the next one's.
            if process is not None:
                process.kill()
                self._all.discard(process)
                process = None
            raise
        finally:
            self._places.put_nowait(process)
        if "fault" in answer:
            raise TemplateError(
                TemplateFault(answer["fault"]), storable(answer["message"]), answer.get("line")
            )
        return answer["result"]

    async def _start(self) -> _Process:
        process = _Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_PROGRAM),
                json.dumps(asdict(self._limits)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        )
        self._all.add(process)
        return process

    async def _end(self, process: _Process) -> None:
        self._all.discard(process)
        process.kill()
        await process.ended()


class _Process:
    """One process, which answers one request at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, content: bytes, seconds: float) -> dict[str, Any]:
        """Raises: OSError or EOFError, if the process has ended; TimeoutError, if it does not answer."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101  as they are pipes
        async with asyncio.timeout(seconds):
            self._process.stdin.write(content)
            await self._process.stdin.drain()
            length = await self._process.stdout.readexactly(4)
            answer: dict[str, Any] = json.loads(
                await self._process.stdout.readexactly(int.from_bytes(length))
            )
            return answer

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        await self._process.wait()
