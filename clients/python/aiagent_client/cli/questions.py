"""Asking in the terminal whether a tool call may run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from aiagent.events.v1.content_pb2 import ToolUse
from aiagent_client.cli.text import main_argument, plain_numbers, safe, tool_input

_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said."""

    allowed: bool
    reason: str = ""


class Keyboard:
    """Lines typed in a terminal, read on the event loop, so that a question can be withdrawn while it stands."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Keyboard]:
        """Opens the terminal of this process, also where standard input is a pipe. Raises OSError without one."""
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        try:
            yield cls(descriptor)
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Drops what was typed before the question: it was not meant for it."""
        termios.tcflush(self._descriptor, termios.TCIFLUSH)

    async def line(self) -> str | None:
        """Returns the next line without its end; None when there will be none."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            if not ready.done():
                try:
                    ready.set_result(os.read(self._descriptor, 65536))
                except OSError:
                    ready.set_result(b"")

        loop.add_reader(self._descriptor, read)
        try:
            typed = await ready
        finally:
            loop.remove_reader(self._descriptor)
        return typed.decode("utf-8", "replace").rstrip("\r\n") if typed else None


def person_present() -> bool:
    """Returns whether someone sees the output and can answer: a terminal behind it, and one to type in."""
    if not sys.stdout.isatty():
        return False
    try:
        with Keyboard.opened():
            return True
    except OSError:
        return False


async def ask(console: Console, keyboard: Keyboard, tool_use: ToolUse) -> Answer | None:
    """Shows a tool call and asks whether it may run. Returns None when nobody is there to answer."""
    cut = show_call(console, tool_use, _SHOWN_LINES)
    keys = "[y]es once, [n]o" + (", [v]iew all" if cut else "")
    keyboard.forget()
    while True:
        console.print(Text.assemble(("  Allow? ", "bold yellow"), (f"{keys}: ", "yellow")), end="")
        console.file.flush()
        typed = await keyboard.line()
        if typed is None:
            console.print()
            return None
        match typed.strip().lower():
            case "y" | "yes":
                return Answer(allowed=True)
            case "n" | "no":
                console.print(Text("  Why? The agent reads it (Enter for none): ", style="yellow"), end="")
                console.file.flush()
                return Answer(allowed=False, reason=(await keyboard.line() or "").strip()[:4096])
            case "v" if cut:
                show_call(console, tool_use, None)


def show_call(console: Console, tool_use: ToolUse, lines: int | None) -> bool:
    """Prints a call with its input, each value at most so many lines; returns whether something was cut."""
    console.print(
        Text.assemble(("? ", "bold yellow"), "The agent wants to run ", (safe(tool_use.tool_name), "bold"))
    )
    cut = False
    if tool_use.HasField("input_content"):
        values: dict[str, Any] = {"input": tool_use.input_content.text}
        cut = tool_use.input_content.HasField("reference")
    else:
        values = tool_input(tool_use)
    main = main_argument(tool_use)
    # What the call is about comes first: a Struct keeps no order.
    for name, value in sorted(values.items(), key=lambda pair: (pair[1] != main, pair[0])):
        text = (
            value
            if isinstance(value, str)
            else json.dumps(plain_numbers(value), ensure_ascii=False, indent=2)
        )
        shown = safe(text).split("\n")
        if lines is not None and (len(shown) > lines or len(text) > lines * 200):
            cut = True
            shown = [line[:200] for line in shown[:lines]]
            shown.append(f"… ({len(text):,} characters)")
        console.print(Text(f"    {safe(name)}: ", style="dim"), end="", soft_wrap=True)
        if len(shown) > 1:
            console.print()
        for line in shown:
            console.print(Text(("      " if len(shown) > 1 else "") + line), soft_wrap=True)
    return cut
