"""A document as PDF, by WeasyPrint: tagged, with bookmarks and a table of contents, and bounded in its length.

WeasyPrint takes about 25 ms and 1 MB for a page, and cannot be told to stop: what it is given is cut before it begins.
It fetches nothing. It draws text with Pango, a library of the system: where that is missing, `why_not` says so.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from ctypes import CDLL
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.reports.gateways.rendering.fonts import write_configuration
from services.reports.gateways.rendering.html import Limits

if TYPE_CHECKING:
    from weasyprint.urls import URLFetcher

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

    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    logging.getLogger("fontTools").setLevel(logging.ERROR)


def write_pdf(html: Iterable[str], target: Path) -> int:
    """Prints HTML, in a process that has called `load`.

    Args:
        html: what to print, complete.
        target: the file to write.

    Returns:
        How many pages it has.
    """
    import weasyprint

    document = weasyprint.HTML(string="".join(html), url_fetcher=_fetcher())
    pages = document.render(pdf_variant=VARIANT)
    with target.open("wb") as file:
        pages.write_pdf(file, pdf_variant=VARIANT)
    return len(pages.pages)


def _fetcher() -> URLFetcher:
    from weasyprint.urls import URLFetcher

    class Nothing(URLFetcher):  # type: ignore[misc]
        """Fetches nothing, of whatever kind: what is printed has all it needs."""

        def fetch(self, url: str, headers: dict[str, str] | None = None) -> None:
            raise ValueError("a report fetches nothing")

    return Nothing(allowed_protocols=())
