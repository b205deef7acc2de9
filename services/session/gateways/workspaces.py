"""The sessions' directories below one root.

An agent owns its workspace and may fill it with links. Whatever works here therefore goes from directory to directory
by descriptor, and follows no link.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from uuid import UUID

from services.session.domain.errors import archive_invalid, invalid_request, workspace_too_large
from services.session.gateways.archives import Extracted, extract

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 256 * 1024


class Workspaces:
    """See `usecases.ports.WorkspaceStorePort`."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Args: root: the directory of all workspaces; limit_bytes: what one may hold."""
        self._root = root.resolve()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.limit_bytes = limit_bytes

    def path(self, session_id: UUID) -> str:
        """Absolute path of a session's workspace."""
        return str(self._root / str(session_id))

    async def create(self, session_id: UUID) -> None:
        """Makes an empty workspace."""
        await asyncio.to_thread(Path(self.path(session_id)).mkdir, 0o700, True, True)

    async def delete(self, session_id: UUID) -> None:
        """Removes a workspace; nothing there is no error."""
        await asyncio.to_thread(shutil.rmtree, self.path(session_id), True)

    # Uploading

    async def receive(self, pieces: AsyncIterator[bytes]) -> Path:
        """Keeps an archive in a temporary file.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with WORKSPACE_TOO_LARGE.
        """
        descriptor, name = tempfile.mkstemp(prefix=".upload-", dir=self._root)
        received = 0
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for piece in pieces:
                    received += len(piece)
                    if received > self.limit_bytes:
                        raise workspace_too_large(self.limit_bytes)
                    await asyncio.to_thread(file.write, piece)
        except BaseException:
            await asyncio.to_thread(os.unlink, name)
            raise
        if received == 0:
            await asyncio.to_thread(os.unlink, name)
            raise archive_invalid("the archive is empty")
        return Path(name)

    async def unpack(self, archive: Path) -> tuple[Path, Extracted]:
        """Extracts an archive into a directory of its own; removes the archive.

        Raises:
            ServiceError: INVALID_ARGUMENT with ARCHIVE_INVALID; RESOURCE_EXHAUSTED with WORKSPACE_TOO_LARGE.
        """
        return await asyncio.to_thread(self._unpack, archive)

    def _unpack(self, archive: Path) -> tuple[Path, Extracted]:
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self._root))
        try:
            return staging, extract(archive, staging, self.limit_bytes)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            archive.unlink(missing_ok=True)

    async def merge(self, session_id: UUID, staging: Path, path: str, size_bytes: int) -> None:
        """Moves what was extracted into a workspace; checks everything before it moves anything.

        Raises:
            ServiceError: INVALID_ARGUMENT with ARCHIVE_INVALID: something is in the way; RESOURCE_EXHAUSTED with
                WORKSPACE_TOO_LARGE.
        """
        await asyncio.to_thread(self._merge, session_id, staging, path, size_bytes)

    def _merge(self, session_id: UUID, staging: Path, path: str, size_bytes: int) -> None:
        root = os.open(self.path(session_id), _DIRECTORY)
        try:
            if _size(root) + size_bytes > self.limit_bytes:
                raise workspace_too_large(self.limit_bytes)
            target = _descend(root, path, create=True)
            try:
                source = os.open(staging, _DIRECTORY)
                try:
                    _walk(source, target, _check)
                    _walk(source, target, _move)
                finally:
                    os.close(source)
            finally:
                os.close(target)
        finally:
            os.close(root)

    async def discard(self, staging: Path) -> None:
        """Removes what was extracted."""
        await asyncio.to_thread(shutil.rmtree, staging, True)

    # Downloading

    async def archive(self, session_id: UUID, path: str, kind: str) -> AsyncIterator[bytes]:
        """Packs a workspace, or a part of it, piece by piece.

        Args:
            session_id: The session.
            path: A directory or file in the workspace; empty for all of it.
            kind: TAR_GZ or ZIP.

        Raises:
            ServiceError: INVALID_ARGUMENT for `path`: it is not there.
        """
        root = await asyncio.to_thread(os.open, self.path(session_id), _DIRECTORY)
        try:
            start = await asyncio.to_thread(_descend, root, path, create=False)
        finally:
            os.close(root)
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
        loop = asyncio.get_running_loop()
        gone = False

        def put(piece: bytes | None) -> None:
            if gone:
                raise BrokenPipeError("the reader is gone")
            asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()

        def pack() -> None:
            try:
                _pack(start, kind, cast("IO[bytes]", _Pieces(put)))
            finally:
                os.close(start)
                if not gone:
                    put(None)

        packing = asyncio.create_task(asyncio.to_thread(pack))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await packing
        finally:
            gone = True
            while not packing.done():
                while not pieces.empty():
                    pieces.get_nowait()
                await asyncio.wait({packing}, timeout=0.05)
            if not packing.cancelled():
                packing.exception()


class _Pieces:
    """A file that is only written to, and hands on what it is given in larger pieces."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        self._buffer += data
        if len(self._buffer) >= _CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._buffer:
            self._put(bytes(self._buffer))
            self._buffer.clear()

    def close(self) -> None:
        self.flush()


def _descend(root: int, path: str, *, create: bool) -> int:
    """Opens a directory below another, following no link."""
    here = os.dup(root)
    for part in [part for part in path.split("/") if part not in ("", ".")]:
        if part == "..":
            os.close(here)
            raise invalid_request("path", "must stay in the workspace")
        try:
            if create:
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                except FileExistsError:
                    create = True
            below = os.open(part, _DIRECTORY, dir_fd=here)
        except OSError:
            raise invalid_request("path", "is no directory of the workspace") from None
        finally:
            os.close(here)
        here = below
    return here


def _size(directory: int) -> int:
    total = 0
    for _, _, names, parent in os.fwalk(".", dir_fd=directory, follow_symlinks=False):
        for name in names:
            total += os.stat(name, dir_fd=parent, follow_symlinks=False).st_size
    return total


def _entries(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as found:
        for entry in sorted(found, key=lambda one: one.name):
            yield entry.name, entry.stat(follow_symlinks=False)


def _walk(source: int, target: int, act: Callable[[int, int, str, bool], bool]) -> None:
    for name, status in list(_entries(source)):
        is_directory = stat.S_ISDIR(status.st_mode)
        if not act(source, target, name, is_directory) or not is_directory:
            continue
        below_source = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            below_target = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                _walk(below_source, below_target, act)
            finally:
                os.close(below_target)
        finally:
            os.close(below_source)


def _check(_source: int, target: int, name: str, is_directory: bool) -> bool:
    """Whether to look further below; raises when something is in the way."""
    try:
        there = os.stat(name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(there.st_mode) != is_directory:
        raise archive_invalid("a file and a directory have the same name", name)
    return True


def _move(source: int, target: int, name: str, is_directory: bool) -> bool:
    """Moves an entry; of a directory that is there already, what is in it."""
    if is_directory:
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError:
            return True
        return False
    os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
    return False


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    status: os.stat_result
    file: IO[bytes] | None = None
    link: str = ""


def _tree(directory: int, prefix: str = "") -> Iterator[_Entry]:
    """Everything below a directory; files are open while they are looked at."""
    for name, status in list(_entries(directory)):
        path = f"{prefix}{name}"
        if stat.S_ISDIR(status.st_mode):
            yield _Entry(path, status)
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                yield from _tree(below, f"{path}/")
            finally:
                os.close(below)
        elif stat.S_ISLNK(status.st_mode):
            yield _Entry(path, status, link=os.readlink(name, dir_fd=directory))
        elif stat.S_ISREG(status.st_mode):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with os.fdopen(descriptor, "rb") as file:
                yield _Entry(path, os.fstat(file.fileno()), file=file)


def _pack(start: int, kind: str, out: IO[bytes]) -> None:
    if kind == "ZIP":
        _pack_zip(start, out)
    else:
        _pack_tar(start, out)
    out.flush()


def _pack_tar(start: int, out: IO[bytes]) -> None:
    with tarfile.open(fileobj=out, mode="w|gz", compresslevel=3) as tar:
        for entry in _tree(start):
            info = tarfile.TarInfo(entry.name)
            info.mode = stat.S_IMODE(entry.status.st_mode)
            info.mtime = int(entry.status.st_mtime)
            if entry.file is not None:
                info.size = entry.status.st_size
            elif entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
            else:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, entry.file)


def _pack_zip(start: int, out: IO[bytes]) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in _tree(start):
            if entry.file is None:
                continue
            info = zipfile.ZipInfo(entry.name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (entry.status.st_mode & 0xFFFF) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with packed.open(info, "w", force_zip64=True) as member:
                shutil.copyfileobj(entry.file, member)
