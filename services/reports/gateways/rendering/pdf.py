"""A document as PDF, by WeasyPrint: tagged, with bookmarks and a table of contents, and bounded in its length.

WeasyPrint takes about 25 ms and 1 MB for a page, and cannot be told to stop: what it is given is cut before it begins.
It fetches nothing. It draws text with Pango, a library of the system: where that is missing, `why_not` says so.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.reports.gateways.rendering.fonts import write_configuration
from services.reports.gateways.rendering.html import Limits

if TYPE_CHECKING:
    from weasyprint.urls import URLFetcher

LIBRARIES: Final = (
    ("gobject-2.0", "libglib2.0-0"),
    ("pango-1.0", "libpango-1.0-0"),
    ("pangoft2-1.0", "libpangoft2-1.0-0"),
    ("harfbuzz", "libharfbuzz0b"),
    ("fontconfig", "libfontconfig1"),
)
"""What must be on the machine, and the package of Debian it is in; the second and third bring the others."""
MISSING: Final = (
    "PDF needs Pango, which this machine does not have (missing: {}). On Debian and Ubuntu: "
    "apt-get install libpango-1.0-0 libpangoft2-1.0-0"
)
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


def why_not() -> str | None:
    """Returns why no PDF can be made here and what to do about it; None if it can."""
    missing = [name for name, _ in LIBRARIES if find_library(name) is None]
    return MISSING.format(", ".join(f"lib{name}" for name in missing)) if missing else None


def write_pdf(html: Iterable[str], target: Path, folder: Path, cache: Path) -> int:
    """Prints HTML.

    Args:
        html: what to print, complete.
        target: the file to write.
        folder: where files may be kept meanwhile.
        cache: where fontconfig keeps what it has read of our fonts.

    Returns:
        How many pages it has.
    """
    # Read when the library is loaded, and never again: a process that prints does nothing else.
    os.environ["FONTCONFIG_FILE"] = str(write_configuration(folder, cache))
    tempfile.tempdir = str(folder)
    import weasyprint

    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    pages = weasyprint.HTML(string="".join(html), url_fetcher=_fetcher(), base_url=None).render(
        pdf_variant="pdf/ua-1", presentational_hints=False
    )
    with target.open("wb") as file:
        pages.write_pdf(file, pdf_variant="pdf/ua-1")
    return len(pages.pages)


def _fetcher() -> URLFetcher:
    from weasyprint.urls import URLFetcher

    class Nothing(URLFetcher):  # type: ignore[misc]
        """Fetches nothing, of whatever kind: what is printed has all it needs."""

        def fetch(self, url: str, headers: dict[str, str] | None = None) -> None:
            raise ValueError("a report fetches nothing")

    return Nothing(allowed_protocols=())
