"""A document as a file: JSON, one line for each item; and as one JSON object, whose schema is published.

Whatever is written can be read again and rendered: NUL and lone surrogates, which PostgreSQL, UTF-8 or XML do not know,
come out as replacement characters, and numbers that JSON does not know as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, BinaryIO, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from services.reports.domain.document import (
    Chart,
    Diff,
    Fact,
    Header,
    Item,
    KeyValues,
    Message,
    Notice,
    ReportKind,
    Section,
    Table,
    Text,
    TimelineEntry,
    ToolCall,
)

FORMAT: Final = "aiagent.report/1"
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The longest line that is read; what is longer is no document of ours."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNKNOWN = {0: _REPLACEMENT, **dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT)}

type _Block = Annotated[
    Text | KeyValues | Table | Chart | Message | ToolCall | Diff | TimelineEntry | Notice,
    Field(discriminator="type"),
]
_ITEM: Final[TypeAdapter[Item]] = TypeAdapter(
    Annotated[
        Header
        | Section
        | Text
        | KeyValues
        | Table
        | Chart
        | Message
        | ToolCall
        | Diff
        | TimelineEntry
        | Notice,
        Field(discriminator="type"),
    ]
)


class DocumentError(ValueError):
    """A file is no document."""


@dataclass(frozen=True, slots=True)
class _SectionOfReport:
    title: str
    level: Literal[1, 2]
    blocks: tuple[_Block, ...]


@dataclass(frozen=True, slots=True)
class _Report:
    format: Literal["aiagent.report/1"]
    kind: ReportKind
    title: str
    subject: str
    created_at: str
    created_by: str
    period_start: str | None
    period_end: str | None
    time_zone: str
    locale: str
    facts: tuple[Fact, ...]
    sections: tuple[_SectionOfReport, ...]


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of a report in JSON."""
    made = TypeAdapter(_Report).json_schema(mode="serialization")
    for name in ("created_at", "period_start", "period_end"):
        description = made["properties"][name]
        for choice in description.get("anyOf", [description]):
            if choice.get("type") == "string":
                choice["format"] = "date-time"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A report of AI-Agent-API",
        **{key: value for key, value in made.items() if key != "title"},
    }


def write_line(item: Item) -> bytes:
    """Returns an item as a line."""
    try:
        line = _ITEM.dump_json(item)
        if b"\\u0000" not in line:
            return line + b"\n"
    except ValueError:
        pass
    return json.dumps(_known(asdict(item)), ensure_ascii=False, default=_plain).encode() + b"\n"


def read_line(line: bytes) -> Item:
    """Returns the item of a line.

    Raises:
        DocumentError: It is none.
    """
    try:
        return _checked(_ITEM.validate_json(line))
    except ValidationError as error:
        try:
            # A surrogate without its other half is JSON for some writers, and not for this reader.
            return _checked(_ITEM.validate_python(_known(json.loads(line)), strict=False))
        except (ValueError, RecursionError):
            raise DocumentError(f"a line is no item of a document: {_told(error)}") from None


def read_items(file: BinaryIO) -> Iterator[Item]:
    """Returns the items of a document one after the other; the first is its header, the second a section.

    Raises:
        DocumentError: It is no document.
    """
    expected = "header"
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DocumentError(f"a line has more than {MAX_LINE_BYTES} bytes")
        item = read_line(line)
        if (item.type == "header") != (expected == "header") or (
            expected == "section" and item.type != "section"
        ):
            raise DocumentError(f"expected a {expected or 'section or block'}, found a {item.type}")
        expected = "section" if expected == "header" else ""
        yield item
    if expected == "header":
        raise DocumentError("the document is empty")


def _checked(item: Item) -> Item:
    if isinstance(item, Table):
        width = len(item.columns)
        if any(len(row) != width for row in item.rows) or len(item.totals or item.columns) != width:
            raise DocumentError("a row of a table does not have a cell for each column")
    elif isinstance(item, Chart) and any(
        len(series.points) != len(item.categories) for series in item.series
    ):
        raise DocumentError("a series of a chart does not have a value for each category")
    return item


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:200]


def _known(value: Any) -> Any:
    match value:
        case str():
            return value.translate(_UNKNOWN)
        case dict():
            return {_known(key): _known(part) for key, part in value.items()}
        case list() | tuple():
            return [_known(part) for part in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _plain(value: Any) -> str:
    return str(value.isoformat())
