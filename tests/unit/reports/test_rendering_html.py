# ruff: noqa: E501, RUF001, SIM905 - one case a line
"""Reports as HTML and Markdown: whatever is written in them, it is text."""

import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from services.reports.domain.document import Chart, ChartKind, Section, Series, Text, ToolCall, ValueKind
from services.reports.gateways.rendering import pdf
from services.reports.gateways.rendering.as_markdown import markdown, said
from services.reports.gateways.rendering.charts import svg
from services.reports.gateways.rendering.code import coloured, coloured_diff
from services.reports.gateways.rendering.html import html, outline
from services.reports.gateways.rendering.markdown import as_html
from services.reports.gateways.rendering.texts import cut, one_line, shown
from services.reports.gateways.rendering.values import NARROW, Formats
from tests.unit.reports import documents
from tests.unit.reports.hostile import hostile as hostile_document

pytestmark = pytest.mark.unit
MAKERS = {**vars(documents), "hostile": hostile_document}
ELEMENTS = frozenset(
    """a b blockquote body br caption circle code col colgroup del desc details div em figcaption figure footer
    h1 h2 h3 h4 h5 h6 head header hr html li line main meta nav ol p polyline pre rect s section span strong style
    summary svg table tbody td text th thead title tr tspan ul""".split()
)
ATTRIBUTES = frozenset(
    """aria-label aria-labelledby charset class content cx cy fill font-family font-size height href http-equiv id lang
    name open points r rel role rx scope start stroke stroke-dasharray stroke-linejoin stroke-width style text-anchor
    viewbox width x x1 x2 xmlns y y1 y2""".split()
)


class Reader(HTMLParser):
    """Notes what is in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.styles: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self._open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.styles += [value or "" for name, value in attrs if name == "style"]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass


@pytest.fixture(scope="module", params=[None, pdf.LIMITS], ids=["screen", "print"])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    document = documents.write(hostile_document(), tmp_path_factory.mktemp("hostile") / "document")
    return "".join(html(document, outline(document), request.param))


def test_nothing_in_a_page_is_more_than_text(hostile: str) -> None:
    reader = Reader()
    reader.feed(hostile)
    assert reader.seen <= ELEMENTS
    assert reader.attributes <= ATTRIBUTES
    assert {link.partition(":")[0] for link in reader.links if not link.startswith("#")} <= {"http", "https"}
    assert all(re.fullmatch(r"text-align:\w+|width:[\d.]+%", style) for style in reader.styles)
    assert len(set(reader.ids)) == len(reader.ids)
    text = "".join(reader.text)
    for told in (
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "[U+202E]txt.exe",
        "</pre></code></td>",
        'onmouseover="alert(1)"',
    ):
        assert told in text
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\uffff]", hostile
    )
    assert not re.search(r"(?<!u001b)\[31m", text)
    # A style sheet of ours is all that there is, and it refers to nothing but the fonts in it.
    sheets = re.findall(r"<style>(.*?)</style>", hostile, re.DOTALL)
    assert len(sheets) == 1
    assert set(re.findall(r"url\(([^)]{0,20})", sheets[0])) <= {"data:font/woff2;base"}
    assert "@import" not in sheets[0]
    assert "default-src 'none'" in hostile[:400]


def test_print_cuts_what_is_long_and_says_so_and_the_screen_has_it_all(tmp_path: Path) -> None:
    output = "".join(f"line {number}\n" for number in range(10_000))
    items = [*documents.task_run(), Section("Long"), ToolCall("Bash", "", output), Text("the end")]
    document = documents.write(items, tmp_path / "document")
    read = outline(document)
    printed, screen = "".join(html(document, read, pdf.LIMITS)), "".join(html(document, read))
    assert "line 39\n" in printed or "line 39<" in printed
    assert "line 40" not in printed
    assert "9,961 more lines" in printed.replace("\u202f", ",") or "more lines, " in printed
    assert "the end" in printed
    assert "line 9999" in screen
    assert "left out" not in screen


def test_print_ends_where_a_printed_document_may(tmp_path: Path) -> None:
    items = [*documents.task_run(), *(Text("word " * 200) for _ in range(1000))]
    document = documents.write(items, tmp_path / "document")
    printed = "".join(html(document, outline(document), replace(pdf.LIMITS, lines=1500)))
    assert "The report ends here" in printed
    assert 50 < printed.count('<div class="prose">') < 500
    assert printed.rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "text",
    ["[" * 25_000, "*a **b " * 7000, "![" * 12_000, "`" * 50_000, ">" * 50_000, "- " * 12_000, "a|\n-|\n" + "|a\n" * 8_000,
     "|".join("a" * 5000) + "\n" + "|".join("-" * 5000) + "\n" + "a\n" * 15_000, "[a]: b\n" * 7000, "<a " * 16_000, "x" * 2_000_000],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_markdown_made_to_be_slow_is_not(text: str) -> None:
    before = time.process_time()
    made = as_html(text)
    assert time.process_time() - before < 10
    assert len(made) < 16 * len(text) + 1000


def test_markdown_loses_nothing_that_is_nested_too_deep() -> None:
    nested = "".join(f"{'  ' * depth}- item {depth}\n" for depth in range(60))
    assert all(f"item {depth}\n" in as_html(nested) for depth in range(59))
    assert as_html("a\n\n- b\n  - c") == "<p>a</p>\n<ul>\n<li>b\n<ul>\n<li>c</li>\n</ul>\n</li>\n</ul>\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>\n"),
        ("[a](JaVaScRiPt&colon;alert(1))", "<p>[a](JaVaScRiPt:alert(1))</p>\n"),
        ("[a](//evil.example)", "<p>[a](//evil.example)</p>\n"),
        ("[a](data:text/html,x)", "<p>[a](data:text/html,x)</p>\n"),
        ("![a](https://x.y/z.png)", '<p><span class="image">[image: a]</span></p>\n'),
        ("<mailto:a@b.c>", '<p><a href="mailto:a@b.c" rel="noopener noreferrer nofollow">mailto:a@b.c</a></p>\n'),
        ("# a", '<h4 class="said">a</h4>\n'),
        ("```python\nif 1: '<'\n```", '<pre class="code"><span class="k-word">if </span><span class="k-number">1</span>: <span class="k-text">&#39;&lt;&#39;</span></pre>\n'),
    ],
)  # fmt: skip
def test_markdown_as_html(text: str, wanted: str) -> None:
    assert as_html(text) == wanted


def test_code_and_diffs_in_colour() -> None:
    assert coloured("</span><b>", "html").striptags() == "</span><b>"
    assert "<span" not in coloured("x = 1\n" * 10_000, "python")
    assert "<span" not in coloured("x = 1", "brainfuck")
    made = coloured_diff("--- a\n+++ b\n@@ -1 +1 @@\n-<old>\n+new\n+newer\n\n same")
    assert '<span class="run del">-&lt;old&gt;</span><span class="run add">+new\n+newer</span>' in made


@pytest.mark.parametrize("kind", ChartKind)
def test_charts_are_sound_whatever_is_in_them(kind: ChartKind) -> None:
    formats = Formats()
    many = Chart(
        kind,
        "<title>",
        tuple(f"c{number}" for number in range(3000)),
        tuple(Series(f"<s{n}>", tuple(float(n * number) for number in range(3000))) for n in range(20)),
    )
    odd = Chart(kind, "x", ("a", "b"), (Series("s", (float("inf"), -5.0)),), ValueKind.DURATION)
    nothing = Chart(kind, "x", (), ())
    for chart in (many, odd):
        root = ET.fromstring(svg(chart, formats, 1))
        assert root.get("role") == "img"
        assert root[0].text == chart.title.replace("<", "<")
        assert root[1].text
        for element in root.iter():
            for name in ("x", "y", "width", "height", "x1", "y1", "cx"):
                assert -50 <= float(element.get(name) or 0) <= 2000
    assert "nothing to show" in svg(nothing, formats, 1)


def test_values_are_written_as_their_locale_does() -> None:
    english, german, french = Formats(), Formats("de-DE", "Europe/Berlin"), Formats("fr")
    assert [one.number(1234567.891) for one in (english, german, french)] == ["1,234,567.89", "1.234.567,89", f"1{NARROW}234{NARROW}567,89"]  # fmt: skip
    assert [english.money(amount) for amount in (0, 10_000, 41_237, 12, 1_234_567_890, -5_000_000)] == ["$0.00", "$0.01", "$0.0412", "$0.000012", "$1,234.57", "−$5.00"]  # fmt: skip
    assert [english.duration(seconds).replace(NARROW, " ") for seconds in (0.013, 2.31, 59.99, 61, 3600, 90_061)] == ["13 ms", "2.3 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"]  # fmt: skip
    assert german.time(documents.NOON) == "2026-11-27 13:00:00"
    assert german.value("2026-11-27T12:00:00+00:00", ValueKind.TIME) == "2026-11-27 13:00:00"
    assert Formats("x", "../../etc/passwd").zone_name == "UTC"
    assert [english.short(value, ValueKind.TOKENS) for value in (0, 2500, 12_500_000)] == [
        "0",
        "2.5k",
        "12.5M",
    ]


def test_texts_are_shown_as_what_they_are() -> None:
    assert shown("a\r\nb\rc\x1b[1;31md\x1b[0m\x1b]0;title\x07e") == "a\nb\ncde"
    assert shown("\u202eabc\u2066") == "[U+202E]abc[U+2066]"
    assert shown("👩‍🚀 שלום \t") == "👩‍🚀 שלום \t"
    assert one_line("a\n\n b " * 200, 10) == "a b a b a…"
    part = cut("1\n2\n3\n4\n", 2, 100)
    assert (part.text, part.lines, part.characters) == ("1\n2", 3, 5)
    assert cut("1\n2\n", 2, 100).characters == 0
    assert cut("x" * 50, 9, 20).characters == 30


@pytest.mark.parametrize("kind", ["session", "task_run", "usage", "audit", "hostile"])
def test_markdown_of_a_report_holds_no_html_and_no_unusual_link(kind: str, tmp_path: Path) -> None:
    document = documents.write(MAKERS[kind](), tmp_path / "document")
    made = "".join(markdown(document))
    assert made.startswith("# ")
    if kind == "hostile":
        made = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", made, flags=re.MULTILINE | re.DOTALL)
        made = re.sub(r"`[^`\n]*`", "", made)
        assert not re.search(r"(?<!\\)<[a-zA-Z/!]", made.replace("<http", ""))
        assert not re.search(r"(?<!\\)\]\((?!https?:|mailto:|#)", made)
        assert not re.search(r"(?<!\\)!\[", made)
        assert "\u202e" not in made


def test_markdown_keeps_what_is_harmless() -> None:
    text = "**a** `b` [c](https://d.e) <https://f.g>\n\n1. x < y"
    assert said(text) == text
