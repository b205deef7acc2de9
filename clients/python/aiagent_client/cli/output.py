"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiagent_client.cli.text import one_line, plain_numbers, safe

# A table that goes into a file or a pipe is not cut to a terminal's width.
_PIPE_WIDTH = 240

_STATE_STYLES = {
    "ACTIVE": "green", "SUCCEEDED": "green", "ALLOWED": "green", "COMPLETED": "green",
    "CONNECTING": "cyan", "PROCESSING": "cyan", "RUNNING": "cyan", "STARTING": "cyan", "QUEUED": "cyan",
    "WAITING": "yellow", "PENDING": "yellow", "INTERRUPTED": "yellow", "TIMED_OUT": "yellow", "EXPIRED": "yellow",
    "FAILED": "red", "DENIED": "red", "TERMINATED": "red", "BUDGET_EXCEEDED": "red", "POSSIBLY_RUN": "red",
}  # fmt: skip


def console_for(file: IO[str]) -> Console:
    """Returns a console on a stream; colours only where it is a terminal and NO_COLOR is not set."""
    terminal = file.isatty()
    width = None if terminal or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


def to_json(message: Message) -> dict[str, Any]:
    """Returns a message in the dialect of the JSON interface: names as in the contract, every field present."""
    found: dict[str, Any] = plain_numbers(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )
    return found


def print_json(value: Message | Mapping[str, Any] | Sequence[Message], *, line: bool = False) -> None:
    """Writes one JSON document to standard output; on one line, for streams."""
    document: Any
    if isinstance(value, Message):
        document = to_json(value)
    elif isinstance(value, Mapping):
        document = value
    else:
        document = [to_json(part) for part in value]
    # ASCII only: what an agent wrote reaches a terminal as escapes, never as control characters.
    sys.stdout.write(json.dumps(document, indent=None if line else 2) + "\n")
    sys.stdout.flush()


def word(kind: Any, value: int) -> Text:
    """Returns the word of a protobuf enum, coloured; unknown numbers, of a newer server, as they are."""
    name = kind.Name(value) if value in kind.values() else str(value)
    return state_text(name)


def state_text(name: str) -> Text:
    """Returns a state's word, coloured."""
    return Text(name.lower().replace("_", " "), style=_STATE_STYLES.get(name, ""))


def plain(value: str, width: int = 200) -> Text:
    """Returns text from a server or an agent for a table's cell: one line, made safe, no markup."""
    return Text(one_line(value, width))


def when(time: Timestamp, now: datetime | None = None) -> Text:
    """Returns a time as people read it: how long ago within a day, else the local date."""
    if not time.seconds:
        return Text("")
    moment = time.ToDatetime(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if -60 < seconds < 60:
        return Text("just now")
    if 0 <= seconds < 3600:
        return Text(f"{seconds // 60:.0f} min ago")
    if 0 <= seconds < 86400:
        return Text(f"{seconds // 3600:.0f} h ago")
    return Text(local_time(time))


def local_time(time: Timestamp) -> str:
    """Returns a time as the local date and time of day."""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M") if time.seconds else ""


def table(columns: Iterable[str | tuple[str, dict[str, Any]]], rows: Iterable[Sequence[Text | str]]) -> Table:
    """Returns a table without frames; a column is a title, or a title with rich's options."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        title, options = column if isinstance(column, tuple) else (column, {})
        made.add_column(title, **options)
    for row in rows:
        made.add_row(*[Text(safe(cell)) if isinstance(cell, str) else cell for cell in row])
    return made


def facts(rows: Iterable[tuple[str, Text | str]]) -> Text:
    """Returns names and values, one pair a line; empty values are left out."""
    shown = [(name, Text(safe(value)) if isinstance(value, str) else value) for name, value in rows]
    shown = [(name, value) for name, value in shown if value.plain]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [Text.assemble((name.ljust(width), "bold"), "  ", value) for name, value in shown]
    return Text("\n").join(lines)
