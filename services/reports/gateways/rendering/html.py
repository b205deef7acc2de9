"""A document as HTML: one file that stands alone, written as its document is read.

The same templates make what is printed, in which nothing is folded and what is long is cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from services.reports.domain.document import (
    Chart,
    Diff,
    Header,
    Item,
    Message,
    ReportKind,
    Section,
    Table,
    Text,
    ToolCall,
    ValueKind,
)
from services.reports.domain.document_lines import read_items
from services.reports.gateways.rendering.charts import svg
from services.reports.gateways.rendering.code import coloured, coloured_diff, counted
from services.reports.gateways.rendering.fonts import faces
from services.reports.gateways.rendering.markdown import as_html
from services.reports.gateways.rendering.texts import Cut, cut, one_line, shown
from services.reports.gateways.rendering.values import RIGHT, Formats

type Progress = Callable[[int], None]
"""Told how many items were rendered so far."""
ASSETS: Final = Path(__file__).parent / "assets"
KINDS: Final = {
    ReportKind.SESSION: "Session report",
    ReportKind.TASK_RUN: "Task run report",
    ReportKind.USAGE: "Usage and cost report",
    ReportKind.AUDIT: "Audit report",
}
MAX_LISTED: Final = 400
MAX_LISTED_IN_PRINT: Final = 40
"""Sections in the table of contents; with more, only those of level 1, and no more than this of them."""
SHORT_CONTENTS: Final = 12
"""With as few in it, the first section follows it on the same page."""
_TOLD_EVERY: Final = 50
_DIGIT: Final = 1.06
"""The width of a digit in a table, in percent of a printed page."""
_ONE_LINE: Final = 92
_OPEN_LINES: Final = 12
_OPEN_CHARACTERS: Final = 1500


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what is long is shown; 0 for all of it.

    Attributes:
        said_lines: Of a message or a text.
        said_characters: Of the same.
        input_lines: Of a tool's input.
        output_lines: Of a tool's output, an error, or an entry of a timeline.
        characters: Of a tool's input or output.
        diff_lines: Of a diff.
        diff_characters: Of the same.
        rows: Of a table.
        lines: Of the whole document, about; what is beyond is left out, with a note.
    """

    said_lines: int = 0
    said_characters: int = 0
    input_lines: int = 0
    output_lines: int = 0
    characters: int = 0
    diff_lines: int = 0
    diff_characters: int = 0
    rows: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A section, as the table of contents has it."""

    number: int
    title: str
    level: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What must be known of a document before it can be written: its header and its sections."""

    header: Header
    sections: tuple[Listed, ...]
    items: int

    def listed(self, most: int) -> list[Listed]:
        """Returns those of the table of contents."""
        if len(self.sections) <= most:
            return list(self.sections)
        return [section for section in self.sections if section.level == 1][:most]


def outline(document: Path) -> Outline:
    """Reads a document once.

    Raises:
        DocumentError: It is none.
    """
    header, found, items = None, [], 0
    with document.open("rb") as file:
        for item in read_items(file):
            items += 1
            if isinstance(item, Header):
                header = item
            elif isinstance(item, Section):
                found.append(item)
    assert header is not None  # noqa: S101  as `read_items` begins with one
    sections = tuple(Listed(number, section.title, section.level) for number, section in enumerate(found, 1))
    return Outline(header, sections, items)


def html(
    document: Path, read: Outline, limits: Limits | None = None, progress: Progress | None = None
) -> Iterator[str]:
    """Writes a document as HTML.

    Args:
        document: its file.
        read: its outline.
        limits: for print; None for a file that has all and is read on a screen.
        progress: told now and then how far it is.
    """
    printing = limits is not None
    limits = limits or Limits()
    pages = Pages(read.header, limits, printing)
    yield pages.head(read)
    room = _Room(limits.lines)
    number = done = 0
    with document.open("rb") as file:
        for item in read_items(file):
            done += 1
            if progress and done % _TOLD_EVERY == 0:
                progress(done)
            if isinstance(item, Section):
                number += 1
                yield pages.section(item, number)
            elif not isinstance(item, Header):
                if not room.has(item):
                    yield pages.left_out(read.items - done + 1)
                    break
                yield pages.block(item)
    yield pages.end(number)


class Pages:
    """The parts of one document as HTML."""

    def __init__(self, header: Header, limits: Limits, printing: bool) -> None:
        self._header = header
        self._printing = printing
        self.formats = Formats(header.locale, header.time_zone)
        self._charts = 0
        self._turns = False
        environment = Environment(
            loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, finalize=_clean
        )
        environment.globals.update(
            f=self.formats, limits=limits, printing=printing, line=one_line, kinds=KINDS,
            markdown=as_html, coloured=coloured, coloured_diff=coloured_diff, counted=counted, draw=self._draw,
            shorten=_shorten, widths=self._widths, right=RIGHT, fixed=(ValueKind.TIME, ValueKind.DAY),
            tidy=_tidy, hint=_hint, brief=_brief, denied=_denied, joined=_joined, decided=_decided,
        )  # fmt: skip
        self._environment = environment
        self._blocks: Any = environment.get_template("blocks.html").module

    def head(self, read: Outline) -> str:
        """Returns everything before the first section."""
        header = self._header
        contents = read.listed(MAX_LISTED_IN_PRINT if self._printing else MAX_LISTED)
        self._turns = len(contents) > SHORT_CONTENTS
        cover = self._environment.get_template("cover.html").render(
            header=header,
            contents=contents,
            period=self.formats.period(header.period_start, header.period_end),
        )
        return self.top() + cover

    def top(self) -> str:
        """Returns the head of the file, and the beginning of its body."""
        sheet = Markup(css(self._printing))  # noqa: S704  our own
        return self._environment.get_template("top.html").render(
            header=self._header, css=sheet, language=language(self._header.locale)
        )

    def section(self, section: Section, number: int) -> str:
        """Returns the title of a section, its predecessor closed."""
        heading = Markup('<h{} id="s{}"{}>{}</h{}>\n').format(
            section.level + 1, number, Markup(' class="first"') if number == 1 and self._turns else "",
            one_line(section.title), section.level + 1,
        )  # fmt: skip
        return f"{'</section>' if number > 1 else ''}<section>{heading}"

    def block(self, block: Item) -> str:
        """Returns a block."""
        return str(getattr(self._blocks, block.type)(block))

    def left_out(self, items: int) -> str:
        """Returns a note that the rest is missing."""
        return Markup(
            '<div class="notice warning"><p>The report ends here: {} more entries do not fit into a printed'
            " document. The HTML, Markdown and JSON forms of this report have all of them.</p></div>\n"
        ).format(self.formats.number(items))

    def end(self, sections: int) -> str:
        """Returns everything after the last block."""
        foot = (
            ""
            if self._printing
            else Markup('<footer class="end">{}</footer>\n').format(
                f"{KINDS[self._header.kind]}, made {self.formats.minute(self._header.created_at)} "
                f"{self.formats.zone_name} by AI-Agent-API."
            )
        )
        return f"{'</section>' if sections else ''}</main>\n{foot}</body>\n</html>\n"

    def _draw(self, chart: Chart) -> Markup:
        self._charts += 1
        return svg(chart, self.formats, self._charts)

    def _widths(self, table: Table) -> list[str]:
        """How wide each column is in percent: what is no text takes what it needs, and texts share what is left."""
        needed: dict[int, float] = {}
        wanted: dict[int, float] = {}
        for index, column in enumerate(table.columns):
            values = [table.totals[index]] if table.totals else []
            values += [row[index] for row in table.rows[:200]]
            sizes = sorted(len(self.formats.value(value, column.kind)) for value in values) or [0]
            word = max((len(word) for word in column.title.split()), default=0)
            if column.kind is ValueKind.TEXT:
                usual = max(sizes[len(sizes) * 9 // 10], min(sizes[-1], 14))
                wanted[index] = max(min(usual, 60), word + 1, 4) + 2.5
            else:
                needed[index] = (max(sizes[-1], word) + 3) * _DIGIT
        room = 100 - sum(needed.values())
        if not wanted or room < 15 * min(len(wanted), 3):
            return _shares(wanted | {index: size / _DIGIT for index, size in needed.items()}, 100)
        shares = dict(zip(wanted, _shares(wanted, room), strict=True))
        return [shares.get(index) or f"{needed[index]:.2f}" for index in range(len(table.columns))]


def _shares(wanted: dict[int, float], room: float) -> list[str]:
    total = sum(wanted.values()) or 1
    return [f"{room * wanted[index] / total:.2f}" for index in sorted(wanted)]


class _Room:
    """How many printed lines are left, about."""

    def __init__(self, lines: int) -> None:
        self._left = lines or None

    def has(self, block: Item) -> bool:
        if self._left is None:
            return True
        self._left -= _lines_of(block)
        return self._left > 0


def _lines_of(block: Item) -> int:
    match block:
        case Table():
            return 4 + min(len(block.rows), 500)
        case Message():
            return 3 + _wrapped(block.markdown[:30_000])
        case ToolCall():
            return 5 + sum(
                min(50, _wrapped(text[:5000])) for text in (block.input, block.output, block.error)
            )
        case Diff():
            return 4 + min(220, _wrapped(block.diff[:20_000]))
        case Chart():
            return 18
        case Text():
            return 1 + _wrapped(block.markdown[:30_000])
        case _:
            return 3


def _wrapped(text: str) -> int:
    return sum(1 + len(line) // 90 for line in text.split("\n"))


def css(printing: bool) -> str:
    """Returns the style sheet of a document, with the fonts if it is for a screen."""
    parts = ("light.css", "report.css", "print.css" if printing else "screen.css")
    sheet = "".join((ASSETS / name).read_text(encoding="utf-8") for name in parts)
    return sheet if printing else faces() + sheet


def language(locale: str) -> str:
    """Returns what a document says its language is; English, if that is not well-formed."""
    return locale if locale.replace("-", "").isalnum() and locale.isascii() else "en"


def _clean(value: Any) -> Any:
    return shown(value) if type(value) is str else value


def _shorten(text: str, lines: int, characters: int) -> Cut:
    return cut(text, lines, characters) if characters else Cut(text)


def _tidy(text: str) -> str:
    """JSON on one line, or if it is long with each value on a line of its own; as it is, if it is very long."""
    if len(text) > 200_000:
        return text
    try:
        value = json.loads(text)
        line = json.dumps(value, ensure_ascii=False)
        return line if len(line) <= _ONE_LINE else json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _hint(text: str) -> str:
    """What a tool was called with, in a few words: its first values."""
    if len(text) > 20_000:
        return ""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(values, dict):
        return ""
    return next((value for value in values.values() if isinstance(value, str)), "")


def _brief(call: ToolCall) -> bool:
    text = call.output + call.error
    return len(text) <= _OPEN_CHARACTERS and text.count("\n") < _OPEN_LINES and len(call.input) <= 1000


def _denied(decision: str) -> bool:
    return decision.lower().startswith(("den", "reject", "refus"))


def _decided(call: ToolCall) -> str:
    decision, decider = one_line(call.decision, 60), one_line(call.decided_by, 80)
    return f"{decision} by {decider}" if decision and decider else decision


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
