"""Templates of users: Jinja2 in its sandbox over a document as plain data, to Markdown or to the body of a page.

A template sees `report` (the header's fields) and `sections`, each with `title`, `level` and `blocks`; every block has
a `type`, and otherwise what `document` says. Filters: `shown(kind)` writes a value as the report does, `time` a moment,
`one_line` a text; and for pages `block` a block as the report shows it, `markdown` Markdown, `code(language)` code.

Whatever a template puts in is escaped for what it writes. It runs in a process whose time and memory are bounded, with
less of both than the rest of a report is given.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import UndefinedError
from markupsafe import Markup

from services.kernel.templating import TooLong, build_environment, fault_of, names_in, printable, render
from services.reports.domain.document import Header, Section, ValueKind
from services.reports.domain.document_lines import read_items, read_line, write_line
from services.reports.gateways.rendering.as_markdown import quotable
from services.reports.gateways.rendering.code import coloured
from services.reports.gateways.rendering.html import Limits, Outline, Pages
from services.reports.gateways.rendering.markdown import as_html
from services.reports.gateways.rendering.texts import one_line, shown

MAX_TEMPLATE_CHARACTERS: Final = 256 * 1024
MAX_CHARACTERS: Final = 8_000_000
"""Of what a template renders to."""
MAX_PRINTED_CHARACTERS: Final = 2_000_000
MAX_ITEMS: Final = 20_000
MAX_BYTES: Final = 32 * 1024 * 1024
"""Of a document that a template is given: it has all of it at once."""
NAMES: Final = frozenset(("report", "sections"))
_ACTIVE: Final = re.compile(
    r"<(?=/?(?:script|meta|base|link|iframe|frame|frameset|object|embed|form|portal)\b)", re.IGNORECASE
)
"""Tags that a page of a report does not have. Its Content-Security-Policy forbids what they and others would do."""


class TemplateFault(Exception):
    """A template cannot be rendered.

    Attributes:
        told: `fault`, `message` and `line`, as `templating.fault_of` has them.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told["message"])
        self.told = told


@dataclass(frozen=True, slots=True)
class Custom:
    """What a user's template made of a document: Markdown, or the body of a page."""

    read: Outline
    output: str
    text: str

    @classmethod
    def of(cls, template: dict[str, str], document: Path, read: Outline, seconds: float) -> Custom:
        """Renders a template.

        Args:
            template: `source`, and `output`: "markdown" or "html".
            document: the document's file.
            read: its outline.
            seconds: of processor time that it may take; after them SIGPROF ends this process.

        Raises:
            TemplateFault: It cannot be rendered.
        """
        # Not handled, so that it ends the process in whatever loop of C it is.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return cls(
                read, template["output"], _made(template["source"], template["output"], document, read)
            )
        except MemoryError:
            raise
        except Exception as error:
            raise TemplateFault(fault_of(error)) from None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def markdown(self) -> Iterator[str]:
        """Returns what it made, as Markdown.

        Raises:
            TemplateFault: It makes pages.
        """
        if self.output != "markdown":
            raise TemplateFault(
                {"fault": "FAILED", "message": "a template that writes HTML gives no Markdown", "line": None}
            )
        yield self.text

    def html(self, limits: Limits | None = None) -> Iterator[str]:
        """Returns what it made as a page that stands alone.

        Args:
            limits: for print, otherwise None.

        Raises:
            TemplateFault: It is too long to be printed.
        """
        if limits is not None and len(self.text) > MAX_PRINTED_CHARACTERS:
            raise TemplateFault(fault_of(TooLong()))
        pages = Pages(self.read.header, limits or Limits(), limits is not None)
        yield pages.top()
        yield (
            f'<main class="prose">{as_html(self.text)}' if self.output == "markdown" else f"<main>{self.text}"
        )
        yield pages.end(0)


def _made(source: str, output: str, document: Path, read: Outline) -> str:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise TooLong
    if read.items > MAX_ITEMS or document.stat().st_size > MAX_BYTES:
        raise OverflowError(f"the report has more than {MAX_ITEMS} entries, too many for a template")
    pages = Pages(read.header, Limits(), printing=False)
    html = output == "html"
    environment = build_environment(autoescape=html, finalize=_finalize_html if html else _finalize_markdown)
    formats = pages.formats
    environment.filters.update(
        shown=lambda value, kind="text": formats.value(value, ValueKind(kind)),
        time=lambda value: formats.value(value, ValueKind.TIME),
        one_line=lambda value: one_line(str(value)),
    )
    if html:
        environment.filters.update(
            block=lambda value: Markup(pages.block(read_line(json.dumps(value).encode()))),  # noqa: S704  escapes
            markdown=lambda value: as_html(str(value)),
            code=lambda value, language="": coloured(str(value), language),
        )
    unknown = set(names_in(environment, source)) - NAMES
    if unknown:
        raise UndefinedError(f"{min(unknown)!r} is undefined; there are `report` and `sections`")
    text = render(environment, environment.compile(source), _data(document), MAX_CHARACTERS)
    return _ACTIVE.sub("&lt;", text) if html else text


def _data(document: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    sections: list[dict[str, Any]] = []
    with document.open("rb") as file:
        for item in read_items(file):
            plain = json.loads(write_line(item))
            if isinstance(item, Header):
                report = plain
            elif isinstance(item, Section):
                sections.append({"title": item.title, "level": item.level, "blocks": []})
            else:
                sections[-1]["blocks"].append(plain)
    return {"report": report, "sections": sections}


def _finalize_html(value: Any) -> Any:
    return shown(value) if type(value) is str else "" if value is None else printable(value)


def _finalize_markdown(value: Any) -> Any:
    return quotable(value) if type(value) is str else "" if value is None else printable(value)
