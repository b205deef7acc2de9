"""Tables that fit their terminal: what may be short gives way, so that states and numbers never do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.cells import cell_len
from rich.text import Text

from aiagent_client.cli.text import safe

_GAP: Final = 3
_SHORTEST_TEXT: Final = 12
# Parts by which an id is shown, and named in commands: the first by which those of a table differ. The beginning is the
# time, which many that are made at once have in common; such ones differ in their ends.
_PARTS: Final = (slice(None, 13), slice(-12, None))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        kind: An `id` is shown by its beginning, or its end, where there is no room, which commands take as well; a
            `text` is then cut, but not to less than a few characters; all else is shown whole.
        right: Whether it is flush right, as numbers are.
        spare: Where there is still no room it is left out, the highest first; never if 0.
    """

    title: str
    kind: Literal["id", "text", "whole"] = "whole"
    right: bool = False
    spare: int = 0


@dataclass(slots=True)
class _Fitted:
    column: Column
    cells: list[Text]
    short: list[Text]
    least: int
    most: int
    width: int = 0


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Text | str]], width: int) -> Text:
    """Returns a table of at most `width` columns of a terminal; wider if what may give way is too little.

    Args:
        columns: The columns, from the left.
        rows: Their cells.
        width: Of the terminal.
    """
    shown = [_measured(column, [_cell(row[place]) for row in rows]) for place, column in enumerate(columns)]
    while (room := width - _GAP * (len(shown) - 1) - sum(one.least for one in shown)) < 0 and any(
        one.column.spare for one in shown
    ):
        shown.remove(max(shown, key=lambda one: one.column.spare))
    room = max(0, room)
    for one in shown:
        one.width = one.least
    # What is left over goes to texts before ids, and to those in front: a part of an id is as useful as all of it.
    for one in sorted(shown, key=lambda one: one.column.kind == "id"):
        more = one.most - one.least
        # There is nothing between a part of an id and all of it.
        given = min(more, room) if one.column.kind == "text" or more <= room else 0
        one.width += given
        room -= given
    heading = _line([(one, Text(one.column.title, "bold")) for one in shown])
    rule = Text("─" * (sum(one.width for one in shown) + _GAP * (len(shown) - 1)))
    lines = [
        _line([(one, (one.cells if one.width == one.most else one.short)[place]) for one in shown])
        for place in range(len(rows))
    ]
    return Text("\n").join([heading, rule, *lines])


def _cell(cell: Text | str) -> Text:
    return Text(safe(cell)) if isinstance(cell, str) else cell


def _measured(column: Column, cells: list[Text]) -> _Fitted:
    title = cell_len(column.title)
    most = max([title, *[cell.cell_len for cell in cells]])
    if column.kind == "whole":
        return _Fitted(column, cells, cells, most, most)
    if column.kind == "text":
        return _Fitted(column, cells, cells, max(title, min(most, _SHORTEST_TEXT)), most)
    ids = {cell.plain for cell in cells}
    part = next((part for part in _PARTS if len({key[part] for key in ids}) == len(ids)), slice(None))
    short = [cell[part] for cell in cells]
    return _Fitted(column, cells, short, max([title, *[cell.cell_len for cell in short]]), most)


def _line(cells: Sequence[tuple[_Fitted, Text]]) -> Text:
    padded = []
    for fit, cell in cells:
        text = cell.copy()
        text.truncate(fit.width, overflow="ellipsis")
        missing = fit.width - text.cell_len
        if fit.column.right:
            text.pad_left(missing)
        else:
            text.pad_right(missing)
        padded.append(text)
    line = Text(" " * _GAP).join(padded)
    line.rstrip()
    return line
