"""What the person at the terminal sees."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _age() -> float:
    """How long this process has existed, in seconds (proc_pid_stat(5), field 22)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Progress:
    """Tells what is going on, with the time it took."""

    def __init__(self) -> None:
        self._step = time.monotonic()
        # A person waits from the start of the process on: imports count.
        self._begun = self._step - _age()

    def done(self, what: str) -> None:
        """One more step is done."""
        now = time.monotonic()
        print(f"  {what:<48} {now - self._step:5.1f} s", flush=True)
        self._step = now

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun


@dataclass(frozen=True, slots=True)
class Facts:
    """What the banner says.

    Attributes:
        base_url: Of the public port.
        state: The state directory.
        administrator: E-mail address of the first administrator.
        isolation: How agents are kept apart, as the executor says.
        offline: Whether the scripted model answers.
        seconds: How long the start took.
    """

    base_url: str
    state: Path
    administrator: str
    isolation: str
    offline: bool
    seconds: float


_ISOLATION = {
    "BUBBLEWRAP": "bubblewrap: own files and network for every agent",
    "PROCESS": "process: agents share the network of this machine",
}


def banner(facts: Facts) -> str:
    """The lines after a start."""
    password = facts.state / "admin-password"
    lines = [
        f"ready in {facts.seconds:.1f} s",
        "",
        f"  API (gRPC, gRPC-Web, JSON)   {facts.base_url}",
        f"  documentation                {facts.base_url}/docs   {facts.base_url}/redoc",
        f"  isolation of agents          {_ISOLATION.get(facts.isolation, facts.isolation.lower())}",
        f"  state and logs               {facts.state}",
    ]
    if password.exists():
        lines.append(f"  administrator                {facts.administrator}, password in {password}")
    if facts.offline:
        lines += ["", "  offline model in use: no ANTHROPIC_API_KEY. Agents, tools and files are real."]
    lines += ["", "  Ctrl-C or `.venv/bin/python -m deploy.local stop` ends it; everything is kept.", ""]
    return "\n".join(lines)


class _Line(logging.Formatter):
    """One line for a warning: what happened and its facts, without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        message: Any = record.msg
        if not isinstance(message, dict):
            return f"{record.levelname.lower()}: {record.getMessage()}"
        hidden = ("event", "level", "logger", "timestamp", "exc_info", "stack_info")
        facts = " ".join(f"{key}={value}" for key, value in message.items() if key not in hidden)
        return f"{record.levelname.lower()}: {message.get('event')} {facts}".rstrip()


def show_warnings() -> None:
    """Shows warnings of all loggers on the terminal too; all lines go to the log file as they did."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Line())
    logging.getLogger().addHandler(handler)
