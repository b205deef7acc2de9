"""Packs directories as archives, piece by piece: whoever reads slowly holds up nothing but the packing."""

from __future__ import annotations

import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, cast

from services.session.gateways.trees import Entry, open_file

PIECE_BYTES = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
_LEVEL = 3


def pack(entries: Iterable[Entry], kind: str) -> Iterator[bytes]:
    """Yields an archive.

    Files are read while they may be written: one that shrinks is filled up with zeros, one that grows is cut.

    Args:
        entries: What to pack.
        kind: TAR_GZ or ZIP.
    """
    return _in_pieces(_zip(entries) if kind == "ZIP" else _compressed(_tar(entries)))


def _in_pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    gathered = bytearray()
    for part in parts:
        gathered += part
        if len(gathered) >= PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _compressed(parts: Iterator[bytes]) -> Iterator[bytes]:
    # With a gzip header.
    gzip = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    for part in parts:
        yield gzip.compress(part)
    yield gzip.flush()


def _tar(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        info = tarfile.TarInfo(entry.path)
        info.mode = stat.S_IMODE(entry.status.st_mode)
        info.mtime = int(entry.status.st_mtime)
        if stat.S_ISDIR(entry.status.st_mode):
            info.type = tarfile.DIRTYPE
            yield _tar_header(info)
        elif stat.S_ISLNK(entry.status.st_mode):
            target = _target(entry)
            if target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, target
                yield _tar_header(info)
        elif stat.S_ISREG(entry.status.st_mode):
            file = open_file(entry.directory, entry.parts[-1])
            if file is not None:
                with os.fdopen(file, "rb", buffering=0) as opened:
                    info.size = os.fstat(file).st_size
                    yield _tar_header(info)
                    yield from _exactly(cast("IO[bytes]", opened), info.size)
                    yield bytes(-info.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _tar_header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(PIECE_BYTES, left)) or bytes(min(PIECE_BYTES, left))
        left -= len(piece)
        yield piece


def _target(entry: Entry) -> str | None:
    try:
        return os.readlink(entry.parts[-1], dir_fd=entry.directory)
    except OSError:
        # It is no link any more.
        return None


class _Gathered:
    """A file that is only written to; what was written is taken away again and again."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def write(self, data: bytes) -> int:
        """Writes."""
        self._parts += data
        return len(data)

    def flush(self) -> None:
        """Does nothing."""

    def take(self) -> bytes:
        """Returns what was written since the last time."""
        taken = bytes(self._parts)
        self._parts.clear()
        return taken


def _zip(entries: Iterable[Entry]) -> Iterator[bytes]:
    out = _Gathered()
    with zipfile.ZipFile(cast("IO[bytes]", out), "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as packed:
        for entry in entries:
            info = _zip_info(entry)
            if stat.S_ISDIR(entry.status.st_mode):
                packed.writestr(info, b"")
            elif stat.S_ISLNK(entry.status.st_mode):
                target = _target(entry)
                if target is not None:
                    packed.writestr(info, os.fsencode(target))
            elif stat.S_ISREG(entry.status.st_mode):
                file = open_file(entry.directory, entry.parts[-1])
                if file is not None:
                    with (
                        os.fdopen(file, "rb", buffering=0) as opened,
                        packed.open(info, "w", force_zip64=True) as member,
                    ):
                        for piece in _exactly(cast("IO[bytes]", opened), os.fstat(file).st_size):
                            member.write(piece)
                            yield out.take()
            yield out.take()
    yield out.take()


def _zip_info(entry: Entry) -> zipfile.ZipInfo:
    # Names in a zip archive are Unicode; one that is none is shown as well as it can be.
    name = os.fsencode(entry.path).decode("utf-8", "replace")
    is_directory = stat.S_ISDIR(entry.status.st_mode)
    written = time.gmtime(max(entry.status.st_mtime, 0))
    year = min(max(written.tm_year, 1980), 2107)
    info = zipfile.ZipInfo(f"{name}/" if is_directory else name, (year, *written[1:6]))
    info.create_system = 3
    info.external_attr = (entry.status.st_mode & 0xFFFF) << 16
    info.compress_type = zipfile.ZIP_STORED if is_directory else zipfile.ZIP_DEFLATED
    return info
