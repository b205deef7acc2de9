"""Hostile text made fit to be shown: nothing of it steers the page, the reader's eye or a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""The escape sequences of terminals, which tools colour their output with."""
_BIDI: Final = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_TAGS: Final = range(0xE0000, 0xE0080)
_CONTROLS: Final = (*range(9), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF)
_SHOWN: Final = {
    # What turns the direction of text makes code look like other code; it is named instead.
    **{code: f"[U+{code:04X}]" for code in (*_BIDI, *_TAGS)},
    **dict.fromkeys((*_CONTROLS, *range(0xD800, 0xE000)), "\N{REPLACEMENT CHARACTER}"),
    0x0C: "\n",
    0x2028: "\n",
    0x2029: "\n",
}
_SUSPECT: Final = re.compile("[" + "".join(re.escape(chr(code)) for code in _SHOWN) + "\r]")


@dataclass(frozen=True, slots=True)
class Cut:
    """The beginning of a text, and how much of it is missing."""

    text: str
    lines: int = 0
    characters: int = 0


def shown(text: str) -> str:
    """Returns a text without what is not to be seen, or seen as what it is not."""
    if not _SUSPECT.search(text):
        return text
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_SHOWN)


def one_line(text: str, characters: int = 300) -> str:
    """Returns a text as one line, cut where it is long."""
    line = " ".join(shown(text[: 4 * characters]).split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def cut(text: str, lines: int, characters: int) -> Cut:
    """Returns at most so many lines and characters of a text."""
    kept = text[:characters]
    end = -1
    for _ in range(lines):
        end = kept.find("\n", end + 1)
        if end < 0:
            break
    else:
        kept = kept[:end]
    missing = len(text) - len(kept)
    if not text[len(kept) :].strip():
        return Cut(kept)
    return Cut(kept, text.count("\n", len(kept)), missing)
