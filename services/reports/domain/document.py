"""The document of a report: a header, and sections of blocks, from which every format is made.

A document is made and read as a stream of the things below, in this order: one `Header`, then any number of `Section`,
each followed by its blocks. Nothing here holds a whole report, which may tell of 50,000 events. `document_lines` is the
form it has in a file.

All texts are what agents, tools and users wrote: no renderer may take any of them for markup, but `markdown`, which is
read without raw HTML and without images.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

type Cell = str | int | float | None
"""A value of a `ValueKind`; None where there is none."""


class ReportKind(StrEnum):
    """What a report is about."""

    SESSION = "session"
    TASK_RUN = "task_run"
    USAGE = "usage"
    AUDIT = "audit"


class ValueKind(StrEnum):
    """How a value is meant and shown."""

    TEXT = "text"
    """A string."""
    NUMBER = "number"
    MONEY = "money"
    """Micro-dollars."""
    TOKENS = "tokens"
    DURATION = "duration"
    """Seconds."""
    TIME = "time"
    """A string, RFC 3339 with an offset; shown in the report's time zone."""
    DAY = "day"
    """A string, YYYY-MM-DD; of the report's time zone."""


class ChartKind(StrEnum):
    """How a chart is drawn."""

    BAR = "bar"
    """Lying bars, one for each category, of the first series."""
    STACKED_BAR = "stacked_bar"
    """Standing bars, one for each category, of all series upon each other."""
    LINE = "line"
    """A line for each series over the categories, which are days."""


class Role(StrEnum):
    """Who speaks in a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class Tone(StrEnum):
    """How much a thing calls for attention."""

    NEUTRAL = "neutral"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Fact:
    """A value and what it is called."""

    label: str
    value: Cell
    kind: ValueKind = ValueKind.TEXT


@dataclass(frozen=True, slots=True)
class Header:
    """What stands at the head of a report.

    Attributes:
        kind: What the report is about.
        title: Its title.
        subject: What it tells of: a session's or a task's name, an organization.
        created_at: When it was made.
        created_by: For whom: a name or an e-mail address.
        period_start: The first moment it tells of, if it is bounded.
        period_end: The first moment after that.
        time_zone: IANA name; times are shown in it.
        locale: BCP 47; how numbers are written and what language the document is said to be in.
        facts: The summary, in the order of weight.
    """

    kind: ReportKind
    title: str
    subject: str
    created_at: datetime
    created_by: str
    period_start: datetime | None = None
    period_end: datetime | None = None
    time_zone: str = "UTC"
    locale: str = "en"
    facts: tuple[Fact, ...] = ()
    type: Literal["header"] = "header"


@dataclass(frozen=True, slots=True)
class Section:
    """Begins a section: the blocks after it are its own. Level 2 is a part of the last section of level 1."""

    title: str
    level: Literal[1, 2] = 1
    type: Literal["section"] = "section"


@dataclass(frozen=True, slots=True)
class Text:
    """Text in Markdown."""

    markdown: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Facts in a list."""

    facts: tuple[Fact, ...]
    type: Literal["key_values"] = "key_values"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    kind: ValueKind = ValueKind.TEXT


@dataclass(frozen=True, slots=True)
class Table:
    """A table; each row has a cell for each column, and so has `totals` if there are any."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    totals: tuple[Cell, ...] | None = None
    caption: str = ""
    type: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each category of a chart; None where there is none."""

    name: str
    points: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart; its values are of the kind `unit`."""

    chart: ChartKind
    title: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    unit: ValueKind = ValueKind.NUMBER
    type: Literal["chart"] = "chart"


@dataclass(frozen=True, slots=True)
class Message:
    """What a user or an agent said, with what is to be told beside it (tokens, cost)."""

    role: Role
    author: str
    markdown: str
    at: datetime | None = None
    facts: tuple[Fact, ...] = ()
    type: Literal["message"] = "message"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that was called, or was not allowed to be.

    Attributes:
        name: Of the tool.
        input: JSON, as text.
        output: What came back, as text.
        at: When it was called.
        duration_seconds: How long it took, if it ran.
        decision: What was decided of it: allowed, denied, or nothing if nothing was to decide.
        decided_by: Who or what decided.
        error: Why it failed, if it did.
    """

    name: str
    input: str = ""
    output: str = ""
    at: datetime | None = None
    duration_seconds: float | None = None
    decision: str = ""
    decided_by: str = ""
    error: str = ""
    type: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True, slots=True)
class Diff:
    """How a file was changed: a unified diff, with or without its head."""

    path: str
    diff: str
    type: Literal["diff"] = "diff"


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """Something that happened, in a line."""

    at: datetime
    title: str
    detail: str = ""
    tone: Tone = Tone.NEUTRAL
    type: Literal["timeline_entry"] = "timeline_entry"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a reader must know of the report or of what it tells."""

    text: str
    tone: Tone = Tone.NEUTRAL
    type: Literal["notice"] = "notice"


type Block = Text | KeyValues | Table | Chart | Message | ToolCall | Diff | TimelineEntry | Notice
type Item = Header | Section | Block
"""What a document is a stream of."""
