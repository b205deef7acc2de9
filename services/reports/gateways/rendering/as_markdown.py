"""A document as Markdown, written as its document is read: what a person reads in a terminal or an editor.

Texts in Markdown stand as quotations, so that their headings are none of the report's, without raw HTML; everything
else is escaped, or stands in a fence longer than any that is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.reports.domain.document import (
    Block,
    Cell,
    Chart,
    Diff,
    Header,
    KeyValues,
    Message,
    Notice,
    Section,
    Table,
    Text,
    TimelineEntry,
    ToolCall,
)
from services.reports.domain.document_lines import read_items
from services.reports.gateways.rendering.html import KINDS, Progress
from services.reports.gateways.rendering.texts import one_line, shown
from services.reports.gateways.rendering.values import RIGHT, Formats

_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>|~#&!{}])")
_FENCES: Final = re.compile(r"`{3,}")
_TAGS: Final = re.compile(r"<(?=[A-Za-z/!?])")
_LINKS: Final = re.compile(
    r"\]\s*\(\s*<?\s*(?!https?:|mailto:)[^\s)]*|^( {0,3}\[[^\]]+\]:\s*)(?!https?:|mailto:)\S*",
    re.IGNORECASE | re.MULTILINE,
)
_AUTO: Final = re.compile(r"<((?:https?|mailto):[^\s<>]*)>", re.IGNORECASE)
_TOLD_EVERY: Final = 50


def markdown(document: Path, progress: Progress | None = None) -> Iterator[str]:
    """Writes a document as Markdown.

    Args:
        document: its file.
        progress: told now and then how far it is.
    """
    formats = Formats()
    with document.open("rb") as file:
        for done, item in enumerate(read_items(file), 1):
            if progress and done % _TOLD_EVERY == 0:
                progress(done)
            if isinstance(item, Header):
                formats = Formats(item.locale, item.time_zone)
                yield _head(item, formats)
            elif isinstance(item, Section):
                yield f"\n{'#' * (item.level + 1)} {escaped(item.title)}\n"
            else:
                yield f"\n{_block(item, formats)}\n"


def escaped(text: str) -> str:
    """Returns a text as one line of Markdown that says that text."""
    return quotable(one_line(text, 2000))


def quotable(text: str) -> str:
    """Returns a text as Markdown that says that text, its lines kept."""
    return _SPECIAL.sub(r"\\\1", shown(text))


def said(markdown: str) -> str:
    """Returns Markdown that others wrote, without what HTML or an unusual link would do in it."""
    parts = _AUTO.split(shown(markdown))
    for index in range(0, len(parts), 2):
        parts[index] = _TAGS.sub("&lt;", parts[index])
    joined = "".join(part if index % 2 == 0 else f"<{part}>" for index, part in enumerate(parts))
    return _LINKS.sub(lambda match: match[1] + "#" if match[1] else "](#", joined).replace("![", "\\!\\[")


def _head(header: Header, formats: Formats) -> str:
    period = formats.period(header.period_start, header.period_end)
    lines = [f"# {escaped(header.title)}", "", f"{KINDS[header.kind]}: {escaped(header.subject)}", ""]
    lines.append(
        f"{f'{period} · ' if period else ''}Made {formats.minute(header.created_at)} for "
        f"{escaped(header.created_by)} · Times in {formats.zone_name}"
    )
    if header.facts:
        lines += ["", *_pairs([(fact.label, formats.value(fact.value, fact.kind)) for fact in header.facts])]
    return "\n".join(lines) + "\n"


def _block(block: Block, formats: Formats) -> str:
    match block:
        case Text():
            return _quoted(said(block.markdown))
        case KeyValues():
            return "\n".join(_pairs([(one.label, formats.value(one.value, one.kind)) for one in block.facts]))
        case Table():
            return _table(block, formats)
        case Chart():
            return _figures(block, formats)
        case Message():
            return _message(block, formats)
        case ToolCall():
            return _tool_call(block, formats)
        case Diff():
            return f"`{_in_code(block.path)}`\n\n{_fenced(block.diff, 'diff')}"
        case TimelineEntry():
            detail = f" – {escaped(block.detail)}" if block.detail else ""
            return f"- {formats.time(block.at)} **{escaped(block.title)}**{detail}"
        case Notice():
            return f"> **Note:** {escaped(block.text)}"


def _message(block: Message, formats: Formats) -> str:
    when = f" · {formats.time(block.at)}" if block.at else ""
    beside = " · ".join(
        f"{escaped(one.label)} {escaped(formats.value(one.value, one.kind))}" for one in block.facts
    )
    return "\n\n".join(
        part
        for part in (f"**{escaped(block.author)}** ({block.role.value}){when}", _quoted(said(block.markdown)), beside)
        if part
    )  # fmt: skip


def _tool_call(block: ToolCall, formats: Formats) -> str:
    told = [f"Tool `{_in_code(block.name)}`"]
    if block.at:
        told.append(formats.time(block.at))
    if block.duration_seconds is not None:
        told.append(formats.duration(block.duration_seconds))
    if block.decision:
        told.append(escaped(block.decision + (f" by {block.decided_by}" if block.decided_by else "")))
    parts = [" · ".join(told)]
    for name, text, language in (
        ("Input", block.input, "json"),
        ("Error", block.error, "text"),
        ("Output", block.output, "text"),
    ):
        if text:
            parts += [f"{name}:", _fenced(text, language)]
    return "\n\n".join(parts)


def _table(block: Table, formats: Formats) -> str:
    def row(cells: tuple[Cell, ...]) -> str:
        return _row(
            [formats.value(cell, column.kind) for cell, column in zip(cells, block.columns, strict=True)]
        )

    lines = [f"**{escaped(block.caption)}**", ""] if block.caption else []
    lines.append(_row([column.title for column in block.columns]))
    lines.append("|" + "|".join(" ---: " if one.kind in RIGHT else " --- " for one in block.columns) + "|")
    lines += [row(cells) for cells in block.rows]
    if block.totals:
        lines.append(row(tuple("" if cell is None else cell for cell in block.totals)))
    return "\n".join(lines)


def _figures(block: Chart, formats: Formats) -> str:
    lines = [f"**{escaped(block.title)}**", ""]
    lines.append(_row(["", *(series.name for series in block.series)]))
    lines.append("| --- |" + " ---: |" * len(block.series))
    for index, category in enumerate(block.categories):
        lines.append(
            _row([category, *(formats.value(series.points[index], block.unit) for series in block.series)])
        )
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _pairs(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"- {escaped(label)}: {escaped(value)}" for label, value in pairs]


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" if line else ">" for line in text.strip("\n").split("\n"))


def _in_code(text: str) -> str:
    return one_line(text, 500).replace("`", "'")


def _fenced(text: str, language: str) -> str:
    text = shown(text).rstrip("\n")
    longest = max((len(run) for run in _FENCES.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
