"""Breaking text between words while it is being written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

_PARTS: Final = re.compile(r"\n|[ \t]+|[^ \t\n]+")


@dataclass(slots=True)
class WordWrap:
    """Turns pieces of text into pieces that do not break words at a terminal's edge.

    A word is held back until its end is known. `width` is in columns; 0 leaves the text as it is.
    """

    width: int
    _column: int = 0
    _spaces: str = ""
    _word: str = ""

    def feed(self, text: str) -> str:
        """Returns what can be printed now."""
        if not self.width:
            return text
        out: list[str] = []
        for part in _PARTS.findall(text):
            if part == "\n":
                out.append(self._end_word())
                out.append("\n")
                self._column, self._spaces = 0, ""
            elif part[0] in " \t":
                out.append(self._end_word())
                self._spaces += part.expandtabs(4)
            else:
                self._word += part
                if cell_len(self._word) >= self.width:
                    # Too long for any line, as URLs are: the terminal breaks it.
                    out.append(self._end_word())
        return "".join(out)

    def flush(self) -> str:
        """Returns what was held back, and begins anew at the beginning of a line."""
        rest = self._end_word()
        self._column, self._spaces = 0, ""
        return rest

    def _end_word(self) -> str:
        word, spaces = self._word, self._spaces
        if not word:
            return ""
        self._word = self._spaces = ""
        wide = cell_len(word)
        if self._column and self._column + len(spaces) + wide > self.width:
            self._column = wide
            return f"\n{word}"
        self._column += len(spaces) + wide
        if self._column > self.width:
            self._column %= self.width
        return spaces + word
