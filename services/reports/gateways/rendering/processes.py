"""Renders reports in processes of their own, a few at a time; see `program` for what such a process does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from services.reports.gateways.rendering.pdf import why_not

_PROGRAM: Final = "services.reports.gateways.rendering.program"
_MAX_ANSWER_BYTES: Final = 64 * 1024


class Format(StrEnum):
    """What a report can be had as."""

    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"
    PDF = "pdf"


class RenderFault(StrEnum):
    """Why a report was not rendered."""

    NO_DOCUMENT = "NO_DOCUMENT"
    """The file is no document."""
    PDF_UNAVAILABLE = "PDF_UNAVAILABLE"
    """The machine lacks what PDF needs."""
    TEMPLATE = "TEMPLATE"
    """The user's template cannot be rendered; the message says why and where."""
    TOO_COSTLY = "TOO_COSTLY"
    """It takes more time or memory than a report is given."""
    TOO_LARGE = "TOO_LARGE"
    """A file comes to more bytes than it may have."""
    FAILED = "FAILED"
    """Anything else: a fault of ours, or a process that somebody killed. Worth another try."""


class RenderError(Exception):
    """A report was not rendered; no file of it is there.

    Attributes:
        fault: Why.
        message: The same for a person.
        line: Of the template, from 1, if the fault is in one and the line is known.
    """

    def __init__(self, fault: RenderFault, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.fault = fault
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What rendering one report may take.

    Attributes:
        cpu_seconds: Processor time.
        wall_seconds: Time, once it has begun.
        memory_bytes: Address space.
        file_bytes: Of the largest file.
        template_seconds: Processor time of a user's template, of all of it.
        nice: How far it stands back behind others.
    """

    cpu_seconds: int = 300
    wall_seconds: float = 900.0
    memory_bytes: int = 3 * 1024 * 1024 * 1024
    file_bytes: int = 2 * 1024 * 1024 * 1024
    template_seconds: float = 20.0
    nice: int = 10


@dataclass(frozen=True, slots=True)
class Template:
    """A user's template: its text, and what it writes: "markdown" or "html"."""

    source: str
    output: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A file that was made; `pages` is told of PDF."""

    bytes: int
    sha256: str
    pages: int | None


class RenderProcesses:
    """Renders reports, each in a process of its own, at most so many at a time: the others wait for their turn."""

    def __init__(self, cache: Path, size: int | None = None, limits: RenderLimits | None = None) -> None:
        """Args:

        cache: folder in which what was read of fonts is kept for the next process.
        size: how many at a time; None for one for each two processors.
        limits: of each of them; None for the usual ones.
        """
        self._cache = cache.absolute()
        self._limits = limits or RenderLimits()
        self._places = asyncio.Semaphore(size or max(1, len(os.sched_getaffinity(0)) // 2))

    @staticmethod
    def why_no_pdf() -> str | None:
        """Returns why this machine makes no PDF and what to install; None if it does."""
        return why_not()

    async def render(
        self,
        document: Path,
        targets: Mapping[Format, Path],
        template: Template | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> dict[Format, Rendered]:
        """Renders a document. If it is cancelled, the process is killed.

        Args:
            document: the document's file.
            targets: the file to make in each format; written in one piece or not at all. Files of the formats that
                came first stay if a later one fails.
            template: the user's, for all formats but JSON; None for the built-in look.
            progress: told now and then how far it is, from 0 to 1.

        Raises:
            RenderError: It was not rendered.
        """
        if Format.PDF in targets and (reason := why_not()) is not None:
            raise RenderError(RenderFault.PDF_UNAVAILABLE, reason)
        async with self._places:
            folder = Path(tempfile.mkdtemp(prefix="report-"))
            try:
                request = self._request(document, targets, template, folder)
                answer = await self._run(request, folder, progress)
            finally:
                for path in targets.values():
                    path.with_name(path.name + ".part").unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
        return {Format(name): Rendered(**made) for name, made in answer.items()}

    def _request(
        self, document: Path, targets: Mapping[Format, Path], template: Template | None, folder: Path
    ) -> dict[str, Any]:
        return {
            "document": str(document.absolute()),
            "folder": str(folder),
            "formats": {name.value: str(path.absolute()) for name, path in targets.items()},
            "template": asdict(template) if template else None,
            "limits": asdict(self._limits),
            "cache": str(self._cache),
        }

    async def _run(
        self, request: dict[str, Any], folder: Path, progress: Callable[[float], None] | None
    ) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            _PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_ANSWER_BYTES,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath, "HOME": str(folder)},
            cwd=folder,
            start_new_session=True,
        )
        answer: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                answer = await _answer(process, request, progress)
                await process.wait()
        except TimeoutError:
            raise RenderError(RenderFault.TOO_COSTLY, "the report takes more time than it is given") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result
        if "fault" in answer:
            fault = RenderFault.TEMPLATE if answer.get("template") else RenderFault(answer["fault"])
            raise RenderError(fault, answer["message"], answer.get("line"))
        if process.returncode == -signal.SIGPROF:
            raise RenderError(RenderFault.TEMPLATE, "the template takes more time than it is given")
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise RenderError(RenderFault.TOO_COSTLY, "the report takes more time or memory than it is given")
        raise RenderError(RenderFault.FAILED, f"the renderer ended with {process.returncode}")


async def _answer(
    process: asyncio.subprocess.Process,
    request: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> dict[str, Any]:
    """Returns the last line that a process wrote, if it is an answer; tells of the others."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101  as they are pipes
    with contextlib.suppress(ConnectionError):
        process.stdin.write(json.dumps(request).encode())
        await process.stdin.drain()
        process.stdin.close()
    told: dict[str, Any] = {}
    while line := await process.stdout.readline():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if progress and "progress" in told:
                progress(told["progress"])
    return told
