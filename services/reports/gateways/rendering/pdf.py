"""A document as PDF, by WeasyPrint: tagged, with bookmarks and a table of contents, and bounded in its length.

WeasyPrint takes about 25 ms and 1 MB for a page, and cannot be told to stop: what it is given is cut before it begins.
It fetches nothing. It draws text with Pango, a library of the system: where that is missing, `why_not` says so.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from ctypes import CDLL
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.reports.gateways.rendering.fonts import write_configuration
from services.reports.gateways.rendering.html import Limits

if TYPE_CHECKING:
    from weasyprint.urls import URLFetcher

_PAGE_CHARACTERS: Final = 4_300
"""Of HTML for one printed page, about."""
LIBRARIES: Final = (
    "libgobject-2.0.so.0",
    "libfontconfig.so.1",
    "libharfbuzz.so.0",
    "libpango-1.0.so.0",
    "libpangoft2-1.0.so.0",
)
"""What must be on the machine."""
MISSING: Final = (
    "PDF needs Pango, which this machine does not have ({} is missing). On Debian and Ubuntu: "
    "apt-get install libpango-1.0-0 libpangoft2-1.0-0"
)
VARIANT: Final = "pdf/ua-1"
"""Tagged, with what readers for the blind ask for."""
LIMITS: Final = Limits(
    said_lines=400,
    said_characters=30_000,
    input_lines=30,
    output_lines=40,
    characters=4_000,
    diff_lines=200,
    diff_characters=16_000,
    rows=500,
    lines=40_000,
)
"""What is printed: about 800 pages at most."""


class PdfUnavailable(Exception):
    """No PDF can be made on this machine; says what to do about it."""


def why_not() -> str | None:
    """Returns why no PDF can be made here and what to do about it; None if it can."""
    for name in LIBRARIES:
        try:
            CDLL(name)
        except OSError:
            return MISSING.format(name)
    return None


def load(folder: Path, cache: Path) -> None:
    """Loads WeasyPrint with our fonts and no others. A process does this once, before it prints.

    Args:
        folder: where files may be kept meanwhile.
        cache: where fontconfig keeps what it has read of our fonts.

    Raises:
        PdfUnavailable: A library is missing.
    """
    os.environ["FONTCONFIG_FILE"] = str(write_configuration(folder, cache))
    tempfile.tempdir = str(folder)
    if (reason := why_not()) is not None:
        raise PdfUnavailable(reason)
    # What it asks the system for is asked now.
    import_module("weasyprint")
    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    import_module("pydyf").PDF.page_references = property(_page_references)


def write_pdf(html: Iterable[str], target: Path, progress: Callable[[float], None] | None = None) -> int:
    """Prints HTML, in a process that has called `load`.

    Args:
        html: what to print, complete.
        target: the file to write.
        progress: told how far it is, from 0 to 1; a guess until it is known how many pages there are.

    Returns:
        How many pages it has.
    """
    import weasyprint

    text = "".join(html)
    pages_logger = logging.getLogger("weasyprint.progress")
    if progress is not None:
        pages_logger.addHandler(_Pages(len(text) / _PAGE_CHARACTERS, progress))
        pages_logger.setLevel(logging.INFO)
    pages = weasyprint.HTML(string=text, url_fetcher=_fetcher()).render(pdf_variant=VARIANT)
    with target.open("wb") as file:
        pages.write_pdf(file, pdf_variant=VARIANT)
    return len(pages.pages)


class _Pages(logging.Handler):
    """Hears of each page that is laid out, which takes most of the time."""

    def __init__(self, expected: float, progress: Callable[[float], None]) -> None:
        super().__init__()
        self._expected = expected
        self._laid_out = 0
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "Step 5 - Creating layout - Page %d":
            self._laid_out += 1
            self._progress(min(0.75, 0.1 + 0.65 * self._laid_out / self._expected))


def _page_references(file: Any) -> tuple[bytes, ...]:
    """Does what the library's own does, but once: it is asked for with each tag, and took time for each page."""
    kids = file.pages["Kids"]
    known: tuple[int, tuple[bytes, ...]] = getattr(file, "_known_pages", (0, ()))
    if known[0] != len(kids):
        known = (len(kids), tuple(b"%d 0 R" % number for number in kids[::3]))
        file._known_pages = known
    return known[1]


def _fetcher() -> URLFetcher:
    from weasyprint.urls import URLFetcher

    class Nothing(URLFetcher):  # type: ignore[misc]
        """Fetches nothing, of whatever kind: what is printed has all it needs."""

        def fetch(self, url: str, headers: dict[str, str] | None = None) -> None:
            raise ValueError("a report fetches nothing")

    return Nothing(allowed_protocols=())
