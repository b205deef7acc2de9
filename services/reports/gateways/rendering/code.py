"""Code and diffs in colour, by Pygments; and as plain text where they are long or in no language that is known here."""

from __future__ import annotations

import functools
from typing import Final

from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from services.reports.gateways.rendering.texts import shown

MAX_CHARACTERS: Final = 20_000
"""Longer code is not coloured: some grammars take time that grows with the square of a text made for it."""
MAX_LINE_CHARACTERS: Final = 2_000
_LANGUAGES: Final = frozenset(
    """bash c c++ cpp csharp css diff docker dockerfile elixir go graphql haskell hcl html http ini java javascript js
    json jsx kotlin lua makefile markdown md php powershell proto protobuf py python r rb rs ruby rust scala sh shell
    sql swift terraform toml ts tsx typescript xml yaml yml zsh""".split()
)
_FORMATTER: Final = HtmlFormatter(nowrap=True, classprefix="k-")


def coloured(code: str, language: str) -> Markup:
    """Returns code as HTML, to stand in a `pre`."""
    code = shown(code)
    lexer = None
    if language and len(code) <= MAX_CHARACTERS and max(map(len, code.split("\n"))) <= MAX_LINE_CHARACTERS:
        lexer = _lexer(language.lower())
    if lexer is None:
        return escape(code)
    return Markup(highlight(code, lexer, _FORMATTER).rstrip("\n"))  # noqa: S704  the formatter escapes


def coloured_diff(diff: str) -> Markup:
    """Returns a unified diff as HTML: its lines, marked as added, taken away, or telling where they are."""
    lines = []
    for line in shown(diff).rstrip("\n").split("\n"):
        kind = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "")
        if line.startswith(("+++ ", "--- ", "diff ", "index ")):
            kind = "file"
        # An empty line needs something to have a height.
        content = escape(line) if line else Markup("&nbsp;")
        lines.append(Markup('<span class="line {}">{}</span>').format(kind, content))
    return Markup().join(lines)


def counted(diff: str) -> tuple[int, int]:
    """Returns how many lines a diff adds and how many it takes away."""
    lines = diff.split("\n")
    added = sum(line.startswith("+") and not line.startswith("+++ ") for line in lines)
    return added, sum(line.startswith("-") and not line.startswith("--- ") for line in lines)


@functools.cache
def _lexer(language: str) -> Lexer | None:
    if language not in _LANGUAGES:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return None
