"""Archives from outside: extracted only when all of them is harmless.

A hostile archive may hold absolute paths, `..`, links that lead out, devices, entries below a link that an entry before
made, a bomb, or end in the middle. Everything is extracted into an empty directory first, member by member, with what
is allowed spelled out: regular files, directories, symbolic links that stay inside.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from services.session.domain.errors import archive_invalid, workspace_too_large

MAX_ENTRIES = 200_000
MAX_DEPTH = 100
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was extracted."""

    file_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: str
    mode: int
    target: str
    content: IO[bytes] | None


def extract(archive: Path, into: Path, limit_bytes: int) -> Extracted:
    """Extracts an archive into an empty directory.

    Args:
        archive: The file: tar, tar.gz or zip, recognised by its content.
        into: An empty directory that nobody else writes.
        limit_bytes: How much it may hold, extracted.

    Returns:
        What it held.

    Raises:
        ServiceError: INVALID_ARGUMENT with ARCHIVE_INVALID; RESOURCE_EXHAUSTED with WORKSPACE_TOO_LARGE.
    """
    files = size = entries = 0
    links: list[tuple[Path, str, str]] = []
    try:
        for member in _members(archive):
            entries += 1
            if entries > MAX_ENTRIES:
                raise archive_invalid(f"the archive holds more than {MAX_ENTRIES} entries")
            path = into / _safe(member.name)
            if path == into:
                continue
            if member.kind == "directory":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or path.exists():
                raise archive_invalid("an entry comes twice", member.name)
            if member.kind == "link":
                links.append((path, member.target, member.name))
                continue
            if member.kind != "file" or member.content is None:
                raise archive_invalid("only files, directories and symbolic links are taken", member.name)
            size += _write(path, member, limit_bytes - size, limit_bytes)
            files += 1
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise archive_invalid(f"the archive cannot be read: {type(error).__name__}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise archive_invalid("an entry lies below one that is no directory") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise archive_invalid("an entry cannot be extracted") from error
    # Links last: no entry can have been written through one.
    for path, target, name in links:
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(_safe(name)), target))
        if target.startswith("/") or inside == ".." or inside.startswith("../") or "\0" in target:
            raise archive_invalid("a link leads out of the workspace", name)
        if path.exists() or path.is_symlink():
            raise archive_invalid("an entry comes twice", name)
        path.symlink_to(target)
    return Extracted(files + len(links), size)


def _safe(name: str) -> str:
    """A member's path, relative and without tricks."""
    clean = posixpath.normpath(name.replace("\\", "/")) if name else "."
    if (
        name.startswith(("/", "\\"))
        or clean == ".."
        or clean.startswith("../")
        or "\0" in name
        or ":" in name[:2]
    ):
        raise archive_invalid("an entry leads out of the workspace", name)
    if clean.count("/") > MAX_DEPTH:
        raise archive_invalid(f"an entry lies deeper than {MAX_DEPTH} directories", name[:200])
    return clean


def _write(path: Path, member: _Member, left: int, limit_bytes: int) -> int:
    written = 0
    if member.content is None:
        raise AssertionError("a file has content")
    mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := member.content.read(_CHUNK):
            written += len(chunk)
            if written > left:
                raise workspace_too_large(limit_bytes)
            file.write(chunk)
    return written


def _members(archive: Path) -> Iterator[_Member]:
    with archive.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zip_members(archive)
    elif head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar" or (head and not head.strip(b"\0")):
        yield from _tar_members(archive)
    else:
        raise archive_invalid("the archive is neither tar, tar.gz nor zip")


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r|*") as tar:
        for entry in tar:
            if entry.isdir():
                yield _Member(entry.name, "directory", entry.mode, "", None)
            elif entry.isreg():
                yield _Member(entry.name, "file", entry.mode, "", tar.extractfile(entry))
            elif entry.issym():
                yield _Member(entry.name, "link", entry.mode, entry.linkname, None)
            else:
                yield _Member(entry.name, "other", entry.mode, "", None)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            mode = entry.external_attr >> 16
            if entry.flag_bits & 0x1:
                raise archive_invalid("the archive is encrypted", entry.filename)
            if entry.is_dir():
                yield _Member(entry.filename, "directory", mode, "", None)
            elif stat.S_ISLNK(mode):
                yield _Member(
                    entry.filename, "link", mode, file.read(entry).decode(errors="replace")[:4096], None
                )
            elif mode and stat.S_IFMT(mode) and not stat.S_ISREG(mode):
                yield _Member(entry.filename, "other", mode, "", None)
            else:
                with file.open(entry) as content:
                    yield _Member(entry.filename, "file", mode, "", content)
