"""Child processes that die with their parent, and come back when they die alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import structlog

from deploy.local.state import LocalError

_log = structlog.get_logger(__name__)
_SETPRIV = shutil.which("setpriv")
_MAX_BACKOFF_SECONDS = 5.0
_STEADY_SECONDS = 30.0
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR")


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the process that started it dies."""
    return [_SETPRIV, "--pdeathsig", "KILL", *command] if _SETPRIV else list(command)


def plain_environment() -> dict[str, str]:
    """The environment of a server: nothing of what was set for the services, keys least of all."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def sweep(run: Path) -> list[str]:
    """Ends what a killed run has left; returns the names.

    Needed where processes cannot be told to die with their parent. A process counts as ours only with the start time
    that was noted: its number may have gone to another one.

    Args:
        run: the directory with the notes.
    """
    ended = []
    for note in run.glob("*.pid"):
        try:
            pid, started = note.read_text(encoding="utf-8").split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) < 1:
                family = [process, *process.children(recursive=True)]
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(family, timeout=5)
                ended.append(note.stem)
        except (OSError, ValueError, psutil.Error) as error:
            _log.debug("nothing left of a child", child=note.stem, why=str(error))
        note.unlink(missing_ok=True)
    return ended


class Child:
    """A process of the suite."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], Awaitable[bool]],
        *,
        run: Path,
        environment: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        wrap: bool = True,
    ) -> None:
        """Describes the process.

        Args:
            name: For logs and messages.
            command: Program and arguments.
            log: Where its output goes.
            ready: Tells whether it serves.
            run: Where a note of its number is kept.
            environment: Its whole environment; a plain one if left out.
            stop_signal: Asks it to end.
            wrap: False when the command itself sees to dying with its parent.
        """
        self.name = name
        self._command = dying_with_parent(command) if wrap else list(command)
        self._log_path = log
        self._ready = ready
        self._note = run / f"{name}.pid"
        self._environment = plain_environment() if environment is None else dict(environment)
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, timeout_seconds: float = 30.0) -> None:
        """Starts it and waits until it serves; from then on it is started again whenever it ends.

        Raises:
            LocalError: It ended, or did not serve in time.
        """
        await self._spawn()
        await self._until_ready(timeout_seconds)
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.name}")

    async def _spawn(self) -> None:
        with os.fdopen(os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self._process.pid).create_time()
            self._note.write_text(f"{self._process.pid} {started}", encoding="utf-8")

    async def _until_ready(self, timeout_seconds: float) -> None:
        process = self._process
        if process is None:
            raise AssertionError("not spawned")
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self._ready():
                    if process.returncode is not None:
                        raise LocalError(
                            f"{self.name} ended with status {process.returncode}: {self._last_line()}"
                        )
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise LocalError(
                f"{self.name} did not serve within {timeout_seconds:.0f} s: {self._last_line()}"
            ) from None

    def _last_line(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1][:300]} (more in {self._log_path})" if lines else f"see {self._log_path}"

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = 0.1
        while self._process is not None:
            begun = loop.time()
            status = await self._process.wait()
            if loop.time() - begun > _STEADY_SECONDS:
                backoff = 0.1
            _log.warning("process ended; starting it again", process=self.name, status=status)
            await asyncio.sleep(backoff)
            backoff = min(_MAX_BACKOFF_SECONDS, backoff * 2)
            try:
                await self._spawn()
                await self._until_ready(30.0)
            except (LocalError, OSError) as error:
                _log.error("process does not come back", process=self.name, why=str(error))
                await self._end(0.0)
            else:
                _log.warning("process is back", process=self.name)

    async def stop(self, timeout_seconds: float = 10.0) -> None:
        """Asks it to end; kills it, with all it started, when it does not."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end(timeout_seconds)
        self._note.unlink(missing_ok=True)

    async def _end(self, timeout_seconds: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout(timeout_seconds):
                await process.wait()
        except TimeoutError:
            _log.warning("process killed", process=self.name)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
