"""Archives from outside: extracted only when all of them is harmless.

A hostile archive may hold absolute paths, `..`, links that lead out, devices, entries below a link that an entry before
made, a bomb, or end in the middle. Everything is extracted into an empty directory first, member by member, with what
is allowed spelled out: regular files, directories, symbolic links that stay inside. What the readers of the standard
library would load into memory because a header says so is bounded before they read it.
"""

from __future__ import annotations

import errno
import gzip
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from services.session.domain.errors import archive_invalid, workspace_too_large

MAX_ENTRIES = 50_000
"""Entries of an archive: each costs a file to make, to move and to delete, however small the archive is."""
MAX_DEPTH = 100
"""Directories that an entry may lie in."""
MAX_LINK = 4096
"""Bytes of a link's target."""
_CHUNK = 1024 * 1024
# What comes before a member's content in a tar archive: its header, its long names, its attributes.
_MAX_TAR_HEADERS = 128 * 1024
# All headers of a tar archive and the padding between its members.
_MAX_TAR_OVERHEAD = 256 * 1024 * 1024
# The table of contents of a zip archive, which is read as a whole before its entries can be counted.
_MAX_ZIP_DIRECTORY = MAX_ENTRIES * 256
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
)
# What the readers of the standard library say of versions and encodings that they do not know.
_UNKNOWN = (NotImplementedError, LookupError)
# What the file system answers to names that it cannot hold.
_UNUSABLE = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOENT, errno.ELOOP})


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
    size: int = 0
    """Bytes of the content, as the archive claims before they are read."""


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
    links: list[tuple[Path, _Member]] = []
    try:
        for member in _members(archive, limit_bytes):
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
            if path.exists():
                raise archive_invalid("an entry comes twice", member.name)
            if member.kind == "link":
                links.append((path, member))
            elif member.kind == "file" and member.content is not None:
                size += _write(path, member, member.content, limit_bytes - size, limit_bytes)
                files += 1
            else:
                raise archive_invalid("only files, directories and symbolic links are taken", member.name)
        # Links last: no entry can have been written through one.
        for path, member in links:
            _link(path, member)
    except _BROKEN as error:
        raise archive_invalid("the archive is cut off or damaged") from error
    except _UNKNOWN as error:
        raise archive_invalid("the archive uses what is not supported") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise archive_invalid("an entry lies below one that is no directory") from error
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise archive_invalid("an entry has a name that cannot be used") from error
        raise
    except (ValueError, RuntimeError, OverflowError, struct.error) as error:
        # What the readers of the standard library say of numbers and texts that make no sense.
        raise archive_invalid("the archive cannot be read") from error
    return Extracted(files + len(links), size)


def _link(path: Path, member: _Member) -> None:
    """Makes a symbolic link that cannot lead out.

    `..` may only come first: there it climbs from a real directory. Behind another name it would climb from wherever
    that name leads, if that is a link too, and a chain of links that each look harmless would lead out.
    """
    parts = member.target.split("/")
    while parts and parts[0] in ("..", "."):
        parts.pop(0)
    place = posixpath.dirname(_safe(member.name))
    inside = posixpath.normpath(posixpath.join(place, member.target))
    if (
        not member.target
        or len(os.fsencode(member.target)) > MAX_LINK
        or "\0" in member.target
        or member.target.startswith("/")
        or ".." in parts
        or inside == ".."
        or inside.startswith("../")
    ):
        raise archive_invalid("a link leads out of the workspace", member.name)
    if path.exists() or path.is_symlink():
        raise archive_invalid("an entry comes twice", member.name)
    path.symlink_to(member.target)


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


def _write(path: Path, member: _Member, content: IO[bytes], left: int, limit_bytes: int) -> int:
    if member.size > left:
        raise workspace_too_large(limit_bytes)
    written = 0
    # Of the mode only the owner's right to run it is taken: no setuid, nothing for others to write.
    mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(_CHUNK):
            written += len(chunk)
            if written > left:
                raise workspace_too_large(limit_bytes)
            file.write(chunk)
    return written


def _members(archive: Path, limit_bytes: int) -> Iterator[_Member]:
    with archive.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_members(file)
        elif head.startswith(b"\x1f\x8b"):
            with gzip.open(file, "rb") as unpacked:
                yield from _tar_members(cast("IO[bytes]", unpacked), limit_bytes)
        elif head[257:262] == b"ustar" or (head and not head.strip(b"\0")):
            yield from _tar_members(file, limit_bytes)
        else:
            raise archive_invalid("the archive is neither tar, tar.gz nor zip")


class _Budget:
    """A file that gives no more bytes than it was allowed to."""

    def __init__(self, file: IO[bytes], total: int) -> None:
        """Args: file: what is read; total: bytes that may be read in all."""
        self._file = file
        self._total = total
        self._left = 0

    def allow(self, size: int) -> None:
        """Lets `size` bytes be read from now on; what was left before is forfeit."""
        self._left = size

    def read(self, size: int) -> bytes:
        """Reads."""
        data = self._file.read(size)
        self._left -= len(data)
        self._total -= len(data)
        if self._left < 0 or self._total < 0:
            raise archive_invalid("the archive has headers that are too large")
        return data


def _tar_members(file: IO[bytes], limit_bytes: int) -> Iterator[_Member]:
    budget = _Budget(file, limit_bytes + _MAX_TAR_OVERHEAD)
    budget.allow(_MAX_TAR_HEADERS)
    with tarfile.open(fileobj=cast("IO[bytes]", budget), mode="r|") as tar:
        while True:
            # Set anew for each member: names and attributes are read into memory, however long they claim to be.
            budget.allow(_MAX_TAR_HEADERS)
            entry = tar.next()
            if entry is None:
                return
            # The stream keeps a list of all that it has read.
            cast("Any", tar).members.clear()
            if entry.size < 0:
                raise archive_invalid("an entry has a negative size", entry.name)
            if entry.isdir():
                yield _Member(entry.name, "directory", entry.mode, "", None)
            elif entry.isreg():
                budget.allow(limit_bytes + _MAX_TAR_HEADERS)
                yield _Member(entry.name, "file", entry.mode, "", tar.extractfile(entry), entry.size)
            elif entry.issym():
                yield _Member(entry.name, "link", entry.mode, entry.linkname, None)
            else:
                yield _Member(entry.name, "other", entry.mode, "", None)


class _BoundedReads:
    """A file of which no one reads much at once."""

    def __init__(self, file: IO[bytes]) -> None:
        """Args: file: what is read."""
        self._file = file
        self._end = file.seek(0, os.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        """Reads."""
        left = self._end - self._file.tell()
        if (left if size < 0 else size) > _MAX_ZIP_DIRECTORY:
            raise archive_invalid("the archive has a table of contents that is too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it stands."""
        return self._file.tell()

    def seekable(self) -> bool:
        """That it can be moved."""
        return True


def _zip_members(bare: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(cast("IO[bytes]", _BoundedReads(bare))) as file:
        for entry in file.infolist():
            mode = entry.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if entry.flag_bits & 0x1:
                raise archive_invalid("the archive is encrypted", entry.filename)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Others may ask for gigabytes to unpack a few bytes.
                raise archive_invalid("an entry is compressed in another way than deflate", entry.filename)
            if entry.is_dir():
                yield _Member(entry.filename, "directory", mode, "", None)
            elif kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                yield _Member(entry.filename, "other", mode, "", None)
            else:
                with file.open(entry) as content:
                    if kind == stat.S_IFLNK:
                        target = os.fsdecode(content.read(MAX_LINK + 1))
                        yield _Member(entry.filename, "link", mode, target, None)
                    else:
                        yield _Member(entry.filename, "file", mode, "", content, entry.file_size)
