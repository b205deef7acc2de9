"""The program that renders one report: a process of its own, which is bounded, and may talk to nobody.

It is started by `processes` for one request and ends with its answer. The request comes on standard input as JSON, and
JSON, a line each, is what leaves on standard output:

    {"document": path, "folder": path, "formats": {"html": path, ...}, "template": ..., "limits": {...}, "cache": path}
    {"progress": 0.4}
    {"result": {"html": {"bytes": ..., "sha256": ..., "pages": ...}, ...}}  or  {"fault": ..., "message": ...}

A file is written under another name, flushed to the disk and renamed: whoever kills this process on any line leaves a
whole file or none, and at most a `.part`, which the starter removes. What a request may take of the processor, of
memory and of the disk is told to the kernel before anything of the document is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

_REFUSED: Final = frozenset(
    (
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.system",
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.sendto",
        "subprocess.Popen",
    )
)
_TOLD_EVERY: Final = 0.02


def main() -> None:
    """Renders what standard input asks for."""
    request = json.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Whatever a library prints is none of the answer.
    os.dup2(2, 1)
    bound(request["limits"])
    try:
        _load(request)
        shut()
        answer: dict[str, Any] = {"result": _rendered(request, answers)}
    except BaseException as error:
        answer = _told(error)
    print(json.dumps(answer), file=answers, flush=True)
    # A hundred thousand objects need not be taken apart before the process ends.
    os._exit(0)


def bound(limits: dict[str, Any]) -> None:
    """Tells the kernel what this process may take; `processes.RenderLimits` says what that is."""
    os.nice(limits["nice"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    # The file that is too large is an error of its writer, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shut() -> None:
    """Cuts this process off: by a network of its own with nothing in it, where the kernel lets it have one, and for
    what is written in Python in any case. No program is started from here either."""
    with contextlib.suppress(OSError):
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event in _REFUSED:
        raise PermissionError(f"a renderer does not do that: {event}")


def _load(request: dict[str, Any]) -> None:
    """Loads what looks for libraries by starting programs, which is not to be done later."""
    if "pdf" in request["formats"]:
        from services.reports.gateways.rendering.pdf import load

        load(Path(request["folder"]), Path(request["cache"]))


def _rendered(request: dict[str, Any], answers: Any) -> dict[str, Any]:
    from services.reports.gateways.rendering import as_json, as_markdown, html, pdf
    from services.reports.gateways.rendering.custom import Custom

    document = Path(request["document"])
    read = html.outline(document)
    formats: dict[str, str] = request["formats"]
    custom = None
    if template := request.get("template"):
        custom = Custom.of(template, document, read, request["limits"]["template_seconds"])
    results: dict[str, Any] = {}
    for done, (name, target) in enumerate(sorted(formats.items(), key=lambda one: one[0] == "pdf")):
        tell = _teller(answers, done / len(formats), 1 / len(formats))

        def items(so_far: int, tell: Callable[[float], None] = tell) -> None:
            tell(so_far / read.items)

        with _Writing(Path(target)) as file:
            match name:
                case "json":
                    file.write(as_json.as_json(document, items))
                case "markdown":
                    file.write(custom.markdown() if custom else as_markdown.markdown(document, items))
                case "html":
                    file.write(custom.html() if custom else html.html(document, read, None, items))
                case "pdf":
                    content = custom.html(pdf.LIMITS) if custom else html.html(document, read, pdf.LIMITS)
                    file.pages = pdf.write_pdf(content, file.path, tell)
                case _:
                    raise ValueError(f"unknown format {name}")
        tell(1.0)
        results[name] = {"bytes": file.size, "sha256": file.digest, "pages": file.pages}
    return results


def _teller(answers: Any, start: float, share: float) -> Callable[[float], None]:
    told = start

    def tell(part: float) -> None:
        nonlocal told
        now = start + share * part
        if now - told >= _TOLD_EVERY:
            told = now
            print(json.dumps({"progress": round(now, 3)}), file=answers, flush=True)

    return tell


class _Writing:
    """A file that is there when all of it is, and not before."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(target.name + ".part")
        self.pages: int | None = None
        self.size = 0
        self.digest = ""

    def __enter__(self) -> _Writing:
        return self

    def write(self, parts: Iterable[str]) -> None:
        with self.path.open("wb") as file:
            file.writelines(_encoded(parts))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.path.unlink(missing_ok=True)
            return
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            self.size = os.fstat(file.fileno()).st_size
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.path.replace(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _encoded(parts: Iterable[str]) -> Iterator[bytes]:
    for part in parts:
        yield part.encode("utf-8", "replace")


def _told(error: BaseException) -> dict[str, Any]:
    from services.reports.domain.document_lines import DocumentError
    from services.reports.gateways.rendering.custom import TemplateFault
    from services.reports.gateways.rendering.pdf import PdfUnavailable

    match error:
        case MemoryError():
            return {"fault": "TOO_COSTLY", "message": "the report takes more memory than it is given"}
        case DocumentError():
            return {"fault": "NO_DOCUMENT", "message": str(error)[:300]}
        case PdfUnavailable():
            return {"fault": "PDF_UNAVAILABLE", "message": str(error)}
        case TemplateFault():
            return {**error.told, "template": True}
        case OSError() if error.errno == errno.EFBIG:
            return {"fault": "TOO_LARGE", "message": "the report is larger than a file may be"}
        case _:
            return {"fault": "FAILED", "message": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    main()
