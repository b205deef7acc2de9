"""The whole suite as a child process, for tests that use it or kill it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from deploy.local.ports import free_port

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0


class RunningSuite:
    """`python -m deploy.local run` in a state directory of its own, on a free port, with the offline model."""

    def __init__(
        self,
        state_dir: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            state_dir: kept over `restart` and `kill9`.
            arguments: of the command, as `--processes`.
            environment: variables beside those of the test run.
            port: of the public listener; a free one if left out.
        """
        self.state_dir = state_dir
        self.port = port or free_port()
        self.arguments = list(arguments)
        self._environment = dict(environment or {})
        self.process: asyncio.subprocess.Process | None = None
        self.output = ""
        self._reader: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """Of the JSON interface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_target(self) -> str:
        """Of the gRPC interface."""
        return f"127.0.0.1:{self.port}"

    @property
    def admin_email(self) -> str:
        """Of the first administrator."""
        return "admin@aiagent.local"

    @property
    def admin_password(self) -> str:
        """Of the first administrator."""
        return (self.state_dir / "admin-password").read_text(encoding="utf-8").strip()

    @property
    def environment(self) -> dict[str, str]:
        """What the suite is started with: nothing of the developer's own settings and keys."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("AIAGENT_", "ANTHROPIC_"))
        }
        return {
            **inherited,
            "AIAGENT_STATE_DIR": str(self.state_dir),
            "AIAGENT_HTTP_PORT": str(self.port),
            "ANTHROPIC_API_KEY": "",
            "PYTHONUNBUFFERED": "1",
            **self._environment,
        }

    async def start(self) -> None:
        """Starts it and waits for "ready"."""
        self.output = ""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.local", "run", *self.arguments),
            cwd=ROOT,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read(self.process, ready))
        waiter = asyncio.create_task(ready.wait())
        await asyncio.wait((self._reader, waiter), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if not ready.is_set():
            await self.kill9()
            raise AssertionError(f"the suite does not start:\n{self.output}\n{self.logs()}")

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.output += line.decode(errors="replace")
            if line.startswith(b"ready in"):
                ready.set()

    async def stop(self) -> int:
        """Asks it to end and waits; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 45)
            except TimeoutError:
                await self.kill9()
                raise AssertionError(f"the suite does not end:\n{self.output}\n{self.logs()}") from None
        return await self._ended()

    async def kill9(self) -> None:
        """Kills the supervisor alone, as the kernel would when memory runs out."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self._ended()

    async def _ended(self) -> int:
        assert self.process is not None
        status = await self.process.wait()
        if self._reader is not None:
            # A process left behind would hold the pipe open.
            await asyncio.wait((self._reader,), timeout=10)
            self._reader.cancel()
        return status

    async def restart(self) -> None:
        """Stops it if it runs, and starts it with the same state on the same port."""
        if self.process is not None and self.process.returncode is None:
            await self.stop()
        await self.start()

    def processes(self) -> list[psutil.Process]:
        """Everything that it has started and that runs."""
        if self.process is None or self.process.returncode is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def logs(self) -> str:
        """The ends of its log files."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-3000:]}"
            for path in sorted((self.state_dir / "logs").glob("*.log"))
        )
