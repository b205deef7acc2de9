"""A document as one JSON object, written as its document is read; `document_lines.schema` describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.reports.domain.document import Header, Section
from services.reports.domain.document_lines import FORMAT, read_items, write_line
from services.reports.gateways.rendering.html import Progress

_TOLD_EVERY: Final = 50


def as_json(document: Path, progress: Progress | None = None) -> Iterator[str]:
    """Writes a document as JSON.

    Args:
        document: its file.
        progress: told now and then how far it is.
    """
    sections, blocks = 0, 0
    with document.open("rb") as file:
        for done, item in enumerate(read_items(file), 1):
            if progress and done % _TOLD_EVERY == 0:
                progress(done)
            line = write_line(item).decode().rstrip("\n")
            if isinstance(item, Header):
                head = json.loads(line)
                del head["type"]
                yield json.dumps({"format": FORMAT, **head}, ensure_ascii=False)[:-1] + ', "sections": ['
            elif isinstance(item, Section):
                end = "\n]}," if sections else ""
                title = json.dumps(item.title, ensure_ascii=False)
                yield f'{end}\n{{"title": {title}, "level": {item.level}, "blocks": ['
                sections, blocks = sections + 1, 0
            else:
                yield f"{',' if blocks else ''}\n{line}"
                blocks += 1
    yield "\n]}\n]}\n" if sections else "]}\n"
