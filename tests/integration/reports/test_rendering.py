# ruff: noqa: E501 - one case a line
"""Reports rendered in processes of their own: what comes out, what they may take, and what is left when they are killed."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pikepdf
import psutil
import pypdfium2
import pytest

from services.reports.gateways.rendering import pdf
from services.reports.gateways.rendering.processes import (
    Format,
    RenderError,
    RenderFault,
    RenderLimits,
    RenderProcesses,
    Template,
)
from tests.unit.reports import documents, hostile

pytestmark = pytest.mark.integration
ALL = tuple(Format)
LIMITS = RenderLimits(cpu_seconds=100, nice=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fonts")


@pytest.fixture
def processes(cache: Path) -> RenderProcesses:
    return RenderProcesses(cache, 2, LIMITS)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return documents.write(documents.session(6), tmp_path / "document")


def targets(folder: Path, *formats: Format) -> dict[Format, Path]:
    return {name: folder / f"report.{name}" for name in formats or ALL}


def text_of(path: Path) -> str:
    with contextlib.closing(pypdfium2.PdfDocument(path)) as read:
        return "\n".join(page.get_textpage().get_text_bounded() for page in read)


async def test_a_session_in_every_format(processes: RenderProcesses, document: Path, tmp_path: Path) -> None:
    told: list[float] = []
    wanted = targets(tmp_path)
    made = await processes.render(document, wanted, progress=told.append)
    for name, path in wanted.items():
        content = path.read_bytes()
        assert made[name].bytes == len(content)
        assert made[name].sha256 == hashlib.sha256(content).hexdigest()
    assert not list(tmp_path.glob("*.part"))
    assert told == sorted(told) and told[-1] <= 1

    with contextlib.closing(pypdfium2.PdfDocument(wanted[Format.PDF])) as read:
        assert len(read) == made[Format.PDF].pages
    text = text_of(wanted[Format.PDF])
    for part in ("Fix rounding of invoices without lines", "顧客の請求書を確認しました", "发票已核对", "청구서를", "🎉", "Привет, мир", "Zażółć gęślą jaźń", "Decimal(0)", "left out here", "Turn 6", f"1 / {made[Format.PDF].pages}"):  # fmt: skip
        assert part in text, part


async def test_a_pdf_is_tagged_and_has_bookmarks_links_metadata_and_our_fonts(
    processes: RenderProcesses, document: Path, tmp_path: Path
) -> None:
    wanted = targets(tmp_path, Format.PDF)
    await processes.render(document, wanted)
    with pikepdf.open(wanted[Format.PDF]) as read:
        assert read.check_pdf_syntax() == []
        root = read.Root
        assert bool(root.MarkInfo.Marked)
        assert str(root.Lang) == "en"
        assert "/StructTreeRoot" in root
        assert str(read.docinfo["/Title"]) == "Fix rounding of invoices without lines"
        assert str(read.docinfo["/Author"]) == "Maria Fernández"
        with read.open_metadata() as metadata:
            assert metadata["pdfuaid:part"] == "1"
        with read.open_outline() as outline:
            titles = [item.title for item in outline.root]
            assert titles == ["Summary", "Cost by turn", "Timeline", "Conversation", "Files changed"]
            assert [item.title for item in outline.root[3].children] == [f"Turn {n}" for n in range(1, 7)]
        links = [note for page in read.pages for note in page.get("/Annots", []) if note.Subtype == "/Link"]
        assert sum("/Dest" in link or link.get("/A", {}).get("/S") == "/GoTo" for link in links) >= 11
        fonts = {
            str(font.BaseFont).partition("+")[2]
            for page in read.pages
            for font in page.Resources.get("/Font", {}).values()
        }
        assert fonts
        assert all(name.startswith(("IBM-Plex", "IBMPlex", "Noto")) for name in fonts), fonts
        assert not {"/JavaScript", "/EmbeddedFiles"} & set(root.get("/Names", {}).keys())


async def test_whatever_is_in_a_report_nothing_is_fetched_and_all_of_it_is_text(
    processes: RenderProcesses, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        document = documents.write(hostile.hostile(address), tmp_path / "document")
        wanted = targets(tmp_path)
        await processes.render(document, wanted)
        template = Template(
            f'<img src="http://{address}/a"><style>@import url(http://{address}/b);body{{% raw %}}{{background:url(http://{address}/c)}}{{% endraw %}}</style>'
            f'<link rel=stylesheet href="http://{address}/d"><p style="content:url(file:///etc/passwd)">{{{{ report.title }}}}</p><img src="file:///etc/passwd">'
            "<script>alert(1)</script><META http-equiv=refresh content=0>",
            "html",
        )
        custom = {name: tmp_path / f"custom.{name}" for name in (Format.HTML, Format.PDF)}
        await processes.render(document, custom, template)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    text = text_of(wanted[Format.PDF])
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert "root:x:0" not in text + text_of(custom[Format.PDF]) + custom[Format.HTML].read_text()
    page = custom[Format.HTML].read_text()
    assert "&lt;script>alert(1)&lt;/script>" in page and "&lt;META http-equiv=refresh" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    with pikepdf.open(wanted[Format.PDF]) as read:
        assert read.check_pdf_syntax() == []
        uris = {str(note.A.URI) for page in read.pages for note in page.get("/Annots", []) if "/URI" in note.get("/A", {})}  # fmt: skip
        assert all(uri.startswith(("http://", "https://", "mailto:")) for uri in uris)


@pytest.mark.parametrize(
    ("output", "source", "wanted"),
    [
        ("markdown", "# {{ report.title }}\n{% for s in sections %}- {{ s.title }}: {{ s.blocks|length }}\n{% endfor %}", "- Result: 2"),
        ("markdown", "{{ '<b> *x*' }}", r"\<b\> \*x\*"),
        ("html", "<h1>{{ report.title }}</h1>{% for s in sections %}{% for b in s.blocks %}{{ b|block }}{% endfor %}{% endfor %}", '<pre class="diff">'),
        ("html", "{{ '<b>' }}{{ 1234567|shown('money') }}{{ '**x**'|markdown }}{{ 'if 1: 2'|code('python') }}", "&lt;b&gt;$1.23<p><strong>x</strong></p>\n<span"),
        ("html", "{{ report.created_at|time }}", "2026-11-27 07:00:00"),
    ],
)  # fmt: skip
async def test_templates_of_users(processes: RenderProcesses, tmp_path: Path, output: str, source: str, wanted: str) -> None:  # fmt: skip
    document = documents.write(documents.task_run(), tmp_path / "document")
    name = Format.MARKDOWN if output == "markdown" else Format.HTML
    await processes.render(document, targets(tmp_path, name), Template(source, output))
    assert wanted in (tmp_path / f"report.{name}").read_text()


@pytest.mark.parametrize(
    ("source", "told", "line"),
    [
        ("{{ report.nix }}", "nix", 1),
        ("{{ nix }}", "nix", None),
        ("a\n{{ ''.__class__ }}", "__class__", 2),
        ("{% include 'x' %}", "stands alone", 1),
        ("{% for %}", "Expected", 1),
        ("{{ 'x' * 9000000 }}", "more characters", None),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more time", None),
    ],
)
async def test_faults_of_templates(cache: Path, document: Path, tmp_path: Path, source: str, told: str, line: int | None, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    processes = RenderProcesses(
        cache, 1, RenderLimits(template_seconds=1 if told == "more time" else 30, nice=0)
    )
    with pytest.raises(RenderError, match=told) as raised:
        await processes.render(document, targets(tmp_path, Format.HTML), Template(source, "html"))
    assert raised.value.fault is RenderFault.TEMPLATE
    assert raised.value.line == line
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (RenderLimits(cpu_seconds=1), RenderFault.TOO_COSTLY),
        (RenderLimits(wall_seconds=1), RenderFault.TOO_COSTLY),
        (RenderLimits(memory_bytes=150 * 1024 * 1024), RenderFault.TOO_COSTLY),
    ],
)
async def test_what_takes_too_much_is_ended(cache: Path, tmp_path: Path, limits: RenderLimits, fault: RenderFault) -> None:  # fmt: skip
    document = documents.write(documents.session(150), tmp_path / "document")
    with pytest.raises(RenderError) as raised:
        await RenderProcesses(cache, 1, limits).render(document, targets(tmp_path, Format.PDF))
    assert raised.value.fault is fault
    assert not list(tmp_path.glob("report.*"))


async def test_a_file_that_grows_too_large_is_not_kept(cache: Path, document: Path, tmp_path: Path) -> None:
    processes = RenderProcesses(cache, 1, RenderLimits(file_bytes=10_000))
    with pytest.raises(RenderError) as raised:
        await processes.render(document, targets(tmp_path, Format.JSON))
    assert raised.value.fault is RenderFault.TOO_LARGE
    assert not list(tmp_path.glob("report.*"))


async def test_no_document_and_no_folder(processes: RenderProcesses, document: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(document.read_bytes()[:-50])
    with pytest.raises(RenderError) as raised:
        await processes.render(broken, targets(tmp_path, Format.HTML))
    assert raised.value.fault is RenderFault.NO_DOCUMENT
    assert not list(tmp_path.glob("report.*"))
    with pytest.raises(RenderError) as raised:
        await processes.render(document, targets(tmp_path / "nowhere", Format.HTML))
    assert raised.value.fault is RenderFault.FAILED


def renderers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "services.reports.gateways.rendering.program" in child.cmdline():
                found.append(child)
    return found


async def until(reached) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.01)


@pytest.fixture
async def slow(processes: RenderProcesses, tmp_path: Path) -> AsyncIterator[asyncio.Task]:
    document = documents.write(documents.session(400), tmp_path / "document")
    task = asyncio.create_task(processes.render(document, targets(tmp_path, Format.PDF)))
    await until(renderers)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_is_cancelled_ends_the_process_and_leaves_nothing(
    slow: asyncio.Task, tmp_path: Path
) -> None:
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert not renderers()
    assert not list(tmp_path.glob("report.*"))


async def test_a_process_that_is_killed_leaves_no_half_file(
    processes: RenderProcesses, tmp_path: Path
) -> None:
    document = documents.write(documents.session(2000), tmp_path / "document")
    task = asyncio.create_task(processes.render(document, targets(tmp_path, Format.HTML)))
    await until(lambda: list(tmp_path.glob("report.html*")))
    renderers()[0].send_signal(signal.SIGKILL)
    with pytest.raises(RenderError):
        await task
    assert not list(tmp_path.glob("report.*"))


async def test_no_more_processes_than_there_are_places(cache: Path, document: Path, tmp_path: Path) -> None:
    processes = RenderProcesses(cache, 1, LIMITS)
    most = 0
    tasks = [asyncio.create_task(processes.render(document, {Format.JSON: tmp_path / f"{n}.json"})) for n in range(4)]  # fmt: skip
    while not all(task.done() for task in tasks):
        most = max(most, len(renderers()))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert most == 1
    assert len(list(tmp_path.glob("*.json"))) == 4


async def test_without_pango_only_pdf_is_refused(processes: RenderProcesses, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert processes.why_no_pdf() is None
    monkeypatch.setattr(pdf, "LIBRARIES", ("libc.so.6", "libpango-9.so.0"))
    assert "apt-get install libpango-1.0-0 libpangoft2-1.0-0" in (processes.why_no_pdf() or "")
    with pytest.raises(RenderError, match=r"libpango-9.so.0 is missing") as raised:
        await processes.render(document, targets(tmp_path))
    assert raised.value.fault is RenderFault.PDF_UNAVAILABLE
    assert not renderers()
    assert await processes.render(document, targets(tmp_path, Format.HTML, Format.JSON, Format.MARKDOWN))


def test_a_renderer_talks_to_nobody_and_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tries = (
            f"__import__('socket').create_connection(('127.0.0.1', {listening.getsockname()[1]}))",
            "__import__('urllib.request').request.urlopen('http://127.0.0.1:1/')",
            "__import__('subprocess').run(['true'])",
            "__import__('os').system('true')",
        )
        code = "from services.reports.gateways.rendering import program\nprogram.shut()\n" + "\n".join(
            f"try: {one}\nexcept Exception as error: print(repr(error))\nelse: print('went')" for one in tries
        )
        told = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        assert told.stdout.count("a renderer does not do that") == len(tries), told.stdout


def test_the_program_answers_on_standard_output(document: Path, tmp_path: Path) -> None:
    request = {
        "document": str(document),
        "folder": str(tmp_path),
        "formats": {"json": str(tmp_path / "a.json")},
        "limits": {
            "cpu_seconds": 60,
            "memory_bytes": 2**31,
            "file_bytes": 2**20,
            "nice": 3,
            "template_seconds": 9,
        },
        "cache": str(tmp_path),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "services.reports.gateways.rendering.program"],
        input=json.dumps(request).encode(), capture_output=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert json.loads(answer.stdout.splitlines()[-1])["result"]["json"]["bytes"] > 1000
