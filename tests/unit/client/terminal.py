"""The `ai-agent` command as a child process: without a terminal, or on one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

from tests.unit.client import forked

COMMAND = [sys.executable, "-c", "from aiagent_client.cli import main; main()"]
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """Runs commands against one server with one configuration."""

    def __init__(self, url: str, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIAGENT_")},
            "AIAGENT_URL": url,
            "AIAGENT_CONFIG_DIR": str(directory),
            "TERM": "xterm-256color",
            "PYTHONUTF8": "1",
        }
        for name in ("NO_COLOR", "COLUMNS"):
            self.environment.pop(name, None)

    async def run(
        self, *arguments: str, stdin: str | bytes = "", environment: Mapping[str, str] | None = None
    ) -> Done:
        """Runs a command without a terminal to its end."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        code, out, err = await asyncio.wait_for(
            forked.run(arguments, given, {**self.environment, **(environment or {})}), 60
        )
        return Done(code, out.decode(), err.decode())

    async def open(self, *arguments: str, width: int = 90) -> Terminal:
        """Starts a command on a terminal of its own."""
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

        def control() -> None:
            os.setsid()
            ioctl(0, termios.TIOCSCTTY, 0)

        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self.environment,
            preexec_fn=control,
        )
        os.close(slave)
        return Terminal(process, master)


class Terminal:
    """A command on a terminal, and the person in front of it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self._raw = ""
        self._grown = asyncio.Event()
        self._read_to = 0
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self._raw += data.decode(errors="replace")
        self._grown.set()

    @property
    def shown(self) -> str:
        """All that was printed, without styles and movements."""
        return _CONTROL.sub("", self._raw).replace("\r", "")

    async def until(self, text: str, seconds: float = 30) -> None:
        """Waits until the text was printed, after what was waited for before."""
        try:
            async with asyncio.timeout(seconds):
                while text not in self.shown[self._read_to :]:
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} did not come; shown was:\n{self.shown}") from None
        self._read_to = self.shown.index(text, self._read_to) + len(text)

    def type(self, text: str) -> None:
        """Types."""
        os.write(self._master, text.encode())

    def press_control_c(self) -> None:
        """Presses Ctrl-C."""
        self.type("\x03")

    async def leave(self, seconds: float = 30) -> int:
        """Presses Ctrl-C until the command ends, and returns its exit code.

        A signal that arrives after Python looked for one and before it waits for a key is noticed with the next key.
        """
        async with asyncio.timeout(seconds):
            while True:
                self.press_control_c()
                with contextlib.suppress(TimeoutError):
                    return await self.end(1)

    async def end(self, seconds: float = 30) -> int:
        """Waits for the command's end and returns its exit code."""
        code = await asyncio.wait_for(self.process.wait(), seconds)
        # What is left in the terminal's buffer comes before its end does.
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._raw += data.decode(errors="replace")
        return code

    async def close(self) -> None:
        """Ends the command."""
        asyncio.get_running_loop().remove_reader(self._master)
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
        os.close(self._master)
