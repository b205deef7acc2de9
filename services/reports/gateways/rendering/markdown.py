"""Markdown as HTML that does nothing: no raw HTML, no images, and links to the web and to mail only."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup, escape

from services.reports.gateways.rendering.code import coloured
from services.reports.gateways.rendering.texts import shown

MAX_CHARACTERS: Final = 50_000
"""Longer text is shown as it was written: to read it takes time that may grow with its square."""
MAX_NESTING: Final = 20
"""What is nested deeper is shown as it was written: the reader would leave it out, and a page could not show it."""
MAX_COLUMNS: Final = 60
"""So are tables with more columns, whose cells are as many as columns times rows, however few were written."""
_SCHEMES: Final = frozenset(("http", "https", "mailto"))


class _Renderer(RendererHTML):
    """The usual HTML, but for what differs here."""

    def image(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        alt = self.renderInlineAsText(tokens[idx].children, options, env) if tokens[idx].children else ""
        return str(Markup('<span class="image">[image: {}]</span>').format(alt or "without a name"))

    def fence(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        language = tokens[idx].info.strip().partition(" ")[0]
        return _code(tokens[idx].content, language)

    def code_block(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return _code(tokens[idx].content, "")

    def heading_open(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        # The levels above are the report's own.
        return f'<h{_level(tokens[idx])} class="said">'

    def heading_close(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return f"</h{_level(tokens[idx])}>\n"

    def link_open(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        target = escape(str(tokens[idx].attrs.get("href", "")))
        return f'<a href="{target}" rel="noopener noreferrer nofollow">'


def _valid(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def _bounded(tokens: Sequence[Token]) -> bool:
    columns = 0
    for token in tokens:
        columns = 0 if token.type == "tr_open" else columns + (token.type in ("th_open", "td_open"))
        if columns > MAX_COLUMNS or token.level > MAX_NESTING:
            return False
        if any(child.level > MAX_NESTING for child in token.children or ()):
            return False
    return True


def _level(token: Token) -> int:
    return min(6, int(token.tag[1]) + 3)


def _code(content: str, language: str) -> str:
    return f'<pre class="code">{coloured(content.rstrip(chr(10)), language)}</pre>\n'


def _build() -> MarkdownIt:
    reader = MarkdownIt(
        "commonmark", {"html": False, "maxNesting": 3 * MAX_NESTING, "breaks": True}, renderer_cls=_Renderer
    ).enable(["table", "strikethrough"])
    reader.validateLink = _valid  # type: ignore[method-assign]
    return reader


_READER: Final = _build()


def as_html(markdown: str) -> Markup:
    """Returns Markdown as HTML; as it was written, if it is too long or too deep to be read."""
    text = shown(markdown)
    if len(text) <= MAX_CHARACTERS:
        try:
            tokens = _READER.parse(text)
            if _bounded(tokens):
                return Markup(_READER.renderer.render(tokens, _READER.options, {}))  # noqa: S704  it escapes
        except RecursionError:
            pass
    return Markup('<pre class="plain">{}</pre>').format(text)
