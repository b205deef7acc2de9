"""Code and diffs in colour, by Pygments; and as plain text where they are long or in no language that is known here."""

from __future__ import annotations

import functools
from typing import Final

from markupsafe import Markup, escape
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Literal, Name, Operator, _TokenType
from pygments.util import ClassNotFound

from services.reports.gateways.rendering.texts import shown

MAX_CHARACTERS: Final = 20_000
"""Longer code is not coloured: some grammars take time that grows with the square of a text made for it."""
MAX_LINE_CHARACTERS: Final = 2_000
_LANGUAGES: Final = frozenset(
    [
        "bash",
        "c",
        "c++",
        "cpp",
        "csharp",
        "css",
        "diff",
        "docker",
        "dockerfile",
        "elixir",
        "go",
        "graphql",
        "haskell",
        "hcl",
        "html",
        "http",
        "ini",
        "java",
        "javascript",
        "js",
        "json",
        "jsx",
        "kotlin",
        "lua",
        "makefile",
        "markdown",
        "md",
        "php",
        "powershell",
        "proto",
        "protobuf",
        "py",
        "python",
        "r",
        "rb",
        "rs",
        "ruby",
        "rust",
        "scala",
        "sh",
        "shell",
        "sql",
        "swift",
        "terraform",
        "toml",
        "ts",
        "tsx",
        "typescript",
        "xml",
        "yaml",
        "yml",
        "zsh",
    ]
)
_CLASSES: Final = {
    Comment: "said",
    Keyword: "word",
    Operator.Word: "word",
    Name.Tag: "word",
    Literal.Number: "number",
    Literal: "text",
    Name.Function: "name",
    Name.Class: "name",
    Name.Decorator: "name",
    Name.Attribute: "name",
    Name.Exception: "name",
}
"""What has a colour, of five. Each run of a colour costs the printer more than the text in it."""


def coloured(code: str, language: str) -> Markup:
    """Returns code as HTML, to stand in a `pre`."""
    code = shown(code)
    lexer = None
    if language and len(code) <= MAX_CHARACTERS and max(map(len, code.split("\n"))) <= MAX_LINE_CHARACTERS:
        lexer = _lexer(language.lower())
    if lexer is None:
        return escape(code)
    runs: list[tuple[str, str]] = []
    for token, text in lexer.get_tokens(code):
        name = _class(token)
        if runs and (runs[-1][0] == name or text.isspace()):
            runs[-1] = (runs[-1][0], runs[-1][1] + text)
        else:
            runs.append((name, text))
    if runs:
        runs[-1] = (runs[-1][0], runs[-1][1].rstrip("\n"))
    return Markup().join(
        Markup('<span class="k-{}">{}</span>').format(name, text) if name else escape(text)
        for name, text in runs
    )


def coloured_diff(diff: str) -> Markup:
    """Returns a unified diff as HTML: runs of lines that are added, taken away, or tell where they are."""
    runs: list[tuple[str, list[str]]] = []
    for line in shown(diff).rstrip("\n").split("\n"):
        kind = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "")
        if line.startswith(("+++ ", "--- ", "diff ", "index ")):
            kind = "hunk"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        # An empty line needs something to have a height.
        runs[-1][1].append(line or "\N{NO-BREAK SPACE}")
    return Markup().join(
        Markup('<span class="run {}">{}</span>').format(kind, "\n".join(lines)) for kind, lines in runs
    )


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


@functools.cache
def _class(token: _TokenType) -> str:
    found: _TokenType | None = token
    while found is not None:
        if found in _CLASSES:
            return _CLASSES[found]
        found = found.parent
    return ""
