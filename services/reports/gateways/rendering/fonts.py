"""The fonts of reports: those shipped beside this module, and two packages for the rest of the world's scripts.

None of the machine's own fonts is used, so that every machine prints the same.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

FONTS: Final = Path(__file__).parent / "assets" / "fonts"
_PACKAGES: Final = ("manimgx_fonts", "noto_cjk_sans_otc")
_LATIN: Final = (
    "U+0000-00FF,U+0131,U+0152-0153,U+02BB-02BC,U+02C6,U+02DA,U+02DC,U+0304,U+0308,U+0329,U+2000-206F,U+20AC,"
    "U+2122,U+2191,U+2193,U+2212,U+2215,U+FEFF,U+FFFD"
)
_LATIN_EXTENDED: Final = (
    "U+0100-02BA,U+02BD-02C5,U+02C7-02CC,U+02CE-02D7,U+02DD-02FF,U+1D00-1DBF,U+1E00-1E9F,U+1EF2-1EFF,U+2020,"
    "U+20A0-20AB,U+20AD-20C0,U+2113,U+2C60-2C7F,U+A720-A7FF"
)
_EMBEDDED: Final = (
    ("IBM Plex Sans", "ibm-plex-sans-latin-400-normal", 400, "normal", _LATIN),
    ("IBM Plex Sans", "ibm-plex-sans-latin-600-normal", 600, "normal", _LATIN),
    ("IBM Plex Sans", "ibm-plex-sans-latin-400-italic", 400, "italic", _LATIN),
    ("IBM Plex Sans", "ibm-plex-sans-latin-ext-400-normal", 400, "normal", _LATIN_EXTENDED),
    ("IBM Plex Sans", "ibm-plex-sans-latin-ext-600-normal", 600, "normal", _LATIN_EXTENDED),
    ("IBM Plex Mono", "ibm-plex-mono-latin-400-normal", 400, "normal", _LATIN),
    ("IBM Plex Mono", "ibm-plex-mono-latin-600-normal", 600, "normal", _LATIN),
)


def faces() -> str:
    """Returns `@font-face` rules that hold the fonts themselves, for HTML that stands alone."""
    rules = []
    for family, name, weight, style, characters in _EMBEDDED:
        content = base64.b64encode((FONTS / f"{name}.woff2").read_bytes()).decode()
        rules.append(
            f'@font-face{{font-family:"{family}";font-weight:{weight};font-style:{style};font-display:swap;'
            f"unicode-range:{characters};src:url(data:font/woff2;base64,{content}) format('woff2')}}"
        )
    return "\n".join(rules)


def write_configuration(folder: Path, cache: Path) -> Path:
    """Writes a configuration for fontconfig that knows our fonts and no others.

    Args:
        folder: where to write it.
        cache: where fontconfig may keep what it has read of them.

    Returns:
        The file, for the variable FONTCONFIG_FILE.
    """
    folders = "".join(f"<dir>{escape(str(path))}</dir>" for path in folders_of_fonts())
    file = folder / "fonts.conf"
    file.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">\n'
        f"<fontconfig>{folders}<cachedir>{escape(str(cache))}</cachedir>"
        "<selectfont><rejectfont><glob>*.woff2</glob></rejectfont></selectfont></fontconfig>\n",
        encoding="utf-8",
    )
    return file


def folders_of_fonts() -> list[Path]:
    """Returns where our fonts lie."""
    packages = (find_spec(name) for name in _PACKAGES)
    return [FONTS, *(Path(spec.origin).parent for spec in packages if spec is not None and spec.origin)]
