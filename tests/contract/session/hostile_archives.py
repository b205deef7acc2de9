"""Archives as an attacker would make them."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

Member = tuple[str, bytes] | tuple[str, bytes, dict[str, Any]]


def tar(*members: Member, compress: bool = True) -> bytes:
    """A tar archive: name, content, and attributes of `tarfile.TarInfo`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if compress else "w") as archive:
        for name, content, *more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in (more[0] if more else {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    """A link in a tar archive."""
    return name, b"", {"type": kind, "linkname": target}


def zipped(*members: tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive: name, content, mode."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


def with_header(change: Callable[[bytearray], None], content: bytes = b"") -> bytes:
    """A tar archive whose first header was changed; its checksum is right again."""
    raw = bytearray(tar(("a.txt", content), compress=False))
    change(raw)
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def claiming(kind: bytes, size: int) -> bytes:
    """A tar.gz archive whose first header announces so many bytes of names or attributes, all there."""

    def change(raw: bytearray) -> None:
        raw[124:136] = b"%011o\0" % size
        raw[156:157] = kind

    header = with_header(change)[:512]
    out = io.BytesIO()
    with gzip.open(out, "wb", compresslevel=1) as packed:
        packed.write(header)
        chunk = b"0" * 1024 * 1024
        for _ in range(size // len(chunk)):
            packed.write(chunk)
    return out.getvalue()


def _negative_size(raw: bytearray) -> None:
    raw[124:136] = b"\xff" * 12


def _sparse(count: int) -> bytes:
    attributes = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "s",
        "GNU.sparse.realsize": "1",
    }
    body = b"%d\n" % count + b"0" * 2 * 1024 * 1024
    return tar(("s", body, {"pax_headers": attributes}))


def _many(count: int) -> bytes:
    return tar(*((f"{number}", b"") for number in range(count)))


def _zip_with_a_large_directory() -> bytes:
    # The end record says that the table of contents is 13 MiB long; a reader that believes it reads all of the file.
    whole = zipped(("a", b"a", 0o644))
    filler = bytes(13 * 1024 * 1024)
    end = bytearray(whole[whole.rindex(b"PK\x05\x06") :])
    end[12:16] = len(filler).to_bytes(4, "little")
    return b"PK\x03\x04" + filler + bytes(end)


def _encrypted() -> bytes:
    raw = bytearray(zipped(("a", b"a", 0o644)))
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


def refused() -> Iterable[tuple[str, bytes]]:
    """Archives of which nothing may be extracted; each begins with something harmless where it can."""
    good: Member = ("good.txt", b"good")
    yield "parent", tar(good, ("../evil", b"x"))
    yield "parent within", tar(good, ("a/../../evil", b"x"))
    yield "absolute", tar(good, ("/tmp/evil", b"x"))
    yield "backslashes", tar(good, ("..\\evil", b"x"))
    yield "drive", tar(good, ("C:\\evil", b"x"))
    yield "link to the root", tar(good, link("l", "/"))
    yield "link to the parent", tar(good, link("a/l", "../.."))
    yield "link up and down", tar(good, link("l", "a/../.."))
    yield "chain of links", tar(good, link("d/e/f", "../.."), link("l", "d/e/f/../.."))
    yield "link to nothing", tar(good, link("l", ""))
    yield "endless link", tar(good, link("l", "x" * 5000))
    yield "entry below a link", tar(link("l", "d"), ("l/evil", b"x"), ("d/x", b""))
    yield "link over a file", tar(("l", b"x"), link("l", "d"))
    yield "file over a link", tar(link("l", "d"), ("l", b"x"), ("d", b"x"))
    yield "link twice", tar(link("l", "a"), link("l", "b"))
    yield "file twice", tar(good, good)
    yield "file below a file", tar(good, ("good.txt/evil", b"x"))
    yield "directory over a file", tar(good, ("good.txt", b"", {"type": tarfile.DIRTYPE}))
    yield "hard link", tar(good, link("h", "good.txt", tarfile.LNKTYPE))
    yield "hard link out", tar(good, link("h", "/etc/passwd", tarfile.LNKTYPE))
    yield "device", tar(good, ("dev", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}))
    yield "named pipe", tar(good, ("pipe", b"", {"type": tarfile.FIFOTYPE}))
    yield "NUL in a name", tar(good, ("a", b"x", {"pax_headers": {"path": "a\0b"}}))
    yield "name that is too long", tar(good, ("n" * 300, b"x"))
    yield "too deep", tar(good, ("d/" * 150 + "x", b"x"))
    yield "cut short", tar(("a", bytes(100_000)), compress=False)[:50_000]
    yield "gzip cut short", tar(("a", __import__("random").Random(1).randbytes(100_000)))[:50_000]
    yield "garbage", b"\x1f\x8b" + b"garbage" * 100
    yield "gzip of garbage", gzip.compress(b"garbage" * 1000)
    yield "not an archive", b"MZ" * 1000
    yield "negative size", with_header(_negative_size)
    yield "size that is no number", with_header(lambda raw: raw.__setitem__(slice(124, 136), b"zzzzzzzzzzzz"))
    yield "endless name", claiming(tarfile.GNUTYPE_LONGNAME, 64 * 1024 * 1024)
    yield "endless link name", claiming(tarfile.GNUTYPE_LONGLINK, 64 * 1024 * 1024)
    yield "endless attributes", claiming(tarfile.XHDTYPE, 64 * 1024 * 1024)
    yield "endless global attributes", claiming(tarfile.XGLTYPE, 64 * 1024 * 1024)
    yield "endless map of holes", _sparse(10**9)
    yield "map of holes without end", _sparse(10)
    yield "more entries than allowed", _many(60)
    yield "zip: parent", zipped(("good", b"g", 0o644), ("../evil", b"x", 0o644))
    yield "zip: absolute", zipped(("good", b"g", 0o644), ("/tmp/evil", b"x", 0o644))
    yield "zip: link out", zipped(("good", b"g", 0o644), ("l", b"../..", stat.S_IFLNK | 0o777))
    yield "zip: entry below a link", zipped(("l", b"d", stat.S_IFLNK | 0o777), ("l/evil", b"x", 0o644))
    yield "zip: device", zipped(("good", b"g", 0o644), ("dev", b"", stat.S_IFCHR | 0o644))
    yield "zip: another compression", zipped(("good", b"g", 0o644), method=zipfile.ZIP_LZMA)
    yield "zip: encrypted", _encrypted()
    yield "zip: cut short", zipped(("a", bytes(1000), 0o644))[:-30]
    yield "zip: endless contents", _zip_with_a_large_directory()
    yield "zip: garbage", b"PK\x03\x04" + b"garbage" * 100
