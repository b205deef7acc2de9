"""The sessions' directories below one root."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog

from services.session.domain.errors import (
    archive_invalid,
    invalid_request,
    session_not_found,
    workspace_too_large,
)
from services.session.gateways import trees
from services.session.gateways.archives import Extracted, extract
from services.session.gateways.merging import merge
from services.session.gateways.packing import pack
from services.session.gateways.storage import told_when_full
from services.session.usecases.workspaces import StagedArchive

# Packing and extracting, which take long, in threads of their own: the others must not wait for them.
_THREADS = 4
_WRITE_BYTES = 1024 * 1024
_UPLOAD = ".upload-"
_DELETED = ".deleted-"
_STALE_SECONDS = 24 * 3600.0
_log = structlog.get_logger(__name__)


class Workspaces:
    """See `usecases.ports.WorkspaceStorePort` and `usecases.workspaces.WorkspaceFiles`."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Args: root: the directory of all workspaces; limit_bytes: what one may hold."""
        self._root = root.resolve()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.limit_bytes = limit_bytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="workspace")

    def path(self, session_id: UUID) -> str:
        """Absolute path of a session's workspace."""
        return str(self._root / str(session_id))

    async def create(self, session_id: UUID) -> None:
        """Makes an empty workspace.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with STORAGE_FULL.
        """
        with told_when_full():
            await asyncio.to_thread(Path(self.path(session_id)).mkdir, 0o700, True, True)

    async def delete(self, session_id: UUID) -> None:
        """Removes a workspace; nothing there is no error. What resists is logged, and tried again at the next start."""
        await asyncio.to_thread(self._delete, session_id)

    def _delete(self, session_id: UUID) -> None:
        hidden = self._root / f"{_DELETED}{session_id}"
        try:
            Path(self.path(session_id)).rename(hidden)
        except FileNotFoundError:
            if not hidden.exists():
                return
        self._remove(hidden)

    def _remove(self, directory: Path) -> None:
        try:
            descriptor = trees.open_root(str(directory))
            try:
                trees.erase(descriptor)
            finally:
                os.close(descriptor)
            directory.rmdir()
        except FileNotFoundError:
            # Another replica removes it too.
            return
        except OSError as error:
            _log.warning("a workspace resists its removal", directory=directory.name, error=error.strerror)

    async def sweep(self) -> None:
        """Removes what crashes have left: deleted workspaces, and uploads that are older than a day."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        for entry in list(os.scandir(self._root)):
            if entry.name.startswith(_DELETED):
                self._remove(self._root / entry.name)
            elif entry.name.startswith(_UPLOAD) and _is_stale(entry):
                shutil.rmtree(entry.path, ignore_errors=True)

    def close(self) -> None:
        """Ends the threads; what they do is finished first."""
        self._threads.shutdown(wait=True)

    async def _run[Result](self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs work in a thread, to its end: a cancelled caller is let go only when nothing works on files any more."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))
        try:
            with told_when_full():
                return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                try:
                    await asyncio.wait({running})
                except asyncio.CancelledError:
                    # It was asked to stop before, and will, in a moment.
                    continue
            raise

    # Uploading

    @asynccontextmanager
    async def staged(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[StagedArchive]:
        """Receives an archive and extracts it into a directory of its own, which is there until the block ends.

        Raises:
            ServiceError: INVALID_ARGUMENT with ARCHIVE_INVALID; RESOURCE_EXHAUSTED with WORKSPACE_TOO_LARGE
                or STORAGE_FULL.
        """
        place = Path(await self._run(tempfile.mkdtemp, "", _UPLOAD, self._root))
        try:
            archive = place / "archive"
            sha256 = await self._receive(archive, pieces)
            files = place / "files"
            extracted = await self._run(_unpack, archive, files, self.limit_bytes)
            yield StagedArchive(files, extracted.file_count, extracted.size_bytes, sha256)
        finally:
            await self._run(shutil.rmtree, place, True)

    async def _receive(self, archive: Path, pieces: AsyncIterator[bytes]) -> str:
        digest = hashlib.sha256()
        received, gathered = 0, bytearray()

        def write(data: bytes) -> None:
            digest.update(data)
            with archive.open("ab") as file:
                file.write(data)

        async for piece in pieces:
            received += len(piece)
            if received > self.limit_bytes:
                raise workspace_too_large(self.limit_bytes)
            gathered += piece
            if len(gathered) >= _WRITE_BYTES:
                await self._run(write, bytes(gathered))
                gathered.clear()
        if received == 0:
            raise archive_invalid("the archive is empty")
        await self._run(write, bytes(gathered))
        return digest.hexdigest()

    async def merge(self, session_id: UUID, staged: StagedArchive, path: str) -> None:
        """Moves what was extracted into a workspace, all of it or nothing; once only, what was staged is used up.

        Args:
            session_id: The session.
            staged: What to move.
            path: The directory to put it into; empty for the workspace itself.

        Raises:
            ServiceError: INVALID_ARGUMENT for `path`, or with ARCHIVE_INVALID: something is in the way;
                RESOURCE_EXHAUSTED with WORKSPACE_TOO_LARGE
                or STORAGE_FULL.
        """
        await self._run(self._merge, session_id, staged, path)

    def _merge(self, session_id: UUID, staged: StagedArchive, path: str) -> None:
        at = trees.split(path)
        root = trees.open_root(self.path(session_id))
        try:
            if trees.size_of(root) + staged.size_bytes > self.limit_bytes:
                raise workspace_too_large(self.limit_bytes)
            # Goes with the rest of what was staged.
            replaced = staged.directory.with_name("replaced")
            replaced.mkdir(0o700)
            source, aside = trees.open_root(str(staged.directory)), trees.open_root(str(replaced))
            try:
                merge(source, root, at, aside)
            finally:
                os.close(source)
                os.close(aside)
        finally:
            os.close(root)

    # Downloading

    async def archive(self, session_id: UUID, path: str, kind: str) -> AsyncGenerator[bytes, None]:
        """Packs a workspace, or a part of it, piece by piece.

        Args:
            session_id: The session.
            path: A directory or file in the workspace; empty for all of it.
            kind: TAR_GZ or ZIP.

        Raises:
            ServiceError: INVALID_ARGUMENT for `path`: it is not there, or a link; NOT_FOUND with SESSION_NOT_FOUND:
                the session was deleted meanwhile.
        """
        packing = self._pack(session_id, trees.split(path), kind)
        try:
            while piece := await self._run(next, packing, b""):
                yield piece
        finally:
            await self._run(packing.close)

    def _pack(self, session_id: UUID, parts: trees.Parts, kind: str) -> Generator[bytes, None, None]:
        try:
            root = trees.open_root(self.path(session_id))
        except FileNotFoundError:
            raise session_not_found(session_id) from None
        try:
            yield from pack(_chosen(root, parts), kind)
        finally:
            os.close(root)


def _unpack(archive: Path, into: Path, limit_bytes: int) -> Extracted:
    into.mkdir()
    try:
        return extract(archive, into, limit_bytes)
    finally:
        archive.unlink()


def _chosen(root: int, parts: trees.Parts) -> Iterator[trees.Entry]:
    """What is below a directory, or a single file."""
    try:
        start = trees.descend(root, parts[:-1])
    except OSError:
        raise invalid_request("path", "is not in the workspace") from None
    try:
        if parts:
            status = trees.status_of(start, parts[-1])
            if status is not None and stat.S_ISREG(status.st_mode):
                yield trees.Entry(parts[-1:], status, start)
                return
            if status is None or not stat.S_ISDIR(status.st_mode):
                raise invalid_request("path", "is not a directory or file of the workspace")
            below = trees.descend(start, parts[-1:])
            os.close(start)
            start = below
        yield from trees.walk(start)
    finally:
        os.close(start)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < time.time() - _STALE_SECONDS
    except FileNotFoundError:
        return False
