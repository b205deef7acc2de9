"""Child processes that die with their parent, and come back when they die alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from deploy.local.state import LocalError

_log = structlog.get_logger(__name__)
_SETPRIV = shutil.which("setpriv")
_MAX_BACKOFF_SECONDS = 5.0


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the process that started it dies."""
    return [_SETPRIV, "--pdeathsig", "KILL", *command] if _SETPRIV else list(command)


class Child:
    """A server process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], Awaitable[bool]],
        *,
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
            environment: Its whole environment; the parent's if left out.
            stop_signal: Asks it to end.
            wrap: False when the command itself sees to dying with its parent.
        """
        self.name = name
        self._command = dying_with_parent(command) if wrap else list(command)
        self._log_path = log
        self._ready = ready
        self._environment = environment
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

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
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment) if self._environment is not None else None,
                start_new_session=True,
            )

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
        backoff = 0.1
        while True:
            process = self._process
            if process is None:
                return
            status = await process.wait()
            if self._stopping:
                return
            _log.warning("server ended; starting it again", server=self.name, status=status)
            await asyncio.sleep(backoff)
            backoff = min(_MAX_BACKOFF_SECONDS, backoff * 2)
            try:
                await self._spawn()
                await self._until_ready(30.0)
            except (LocalError, OSError) as error:
                _log.error("server does not come back", server=self.name, why=str(error))
            else:
                backoff = 0.1
                _log.warning("server is back", server=self.name)

    async def stop(self, timeout_seconds: float = 10.0) -> None:
        """Asks it to end; kills it, with all it started, when it does not."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout(timeout_seconds):
                await process.wait()
        except TimeoutError:
            _log.warning("server killed", server=self.name)
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
