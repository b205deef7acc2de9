"""The blob store: large texts as objects below one URL, by fsspec (`file://` here, `s3://` elsewhere)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import fsspec
from fsspec.implementations.local import LocalFileSystem

from services.session.domain.errors import content_not_found
from services.session.gateways.storage import told_when_full

_CHUNK_BYTES = 256 * 1024


class BlobStore:
    """See `usecases.ports.BlobStorePort`."""

    def __init__(self, url: str) -> None:
        """Args: url: where objects go, as in `file:///var/lib/aiagent/blobs`."""
        filesystem, self._root = fsspec.core.url_to_fs(url)  # type: ignore[no-untyped-call]
        self._files: Any = filesystem

    def _path(self, session_id: UUID, content_id: UUID) -> str:
        return f"{self._root}/{session_id}/{content_id}"

    async def put(self, session_id: UUID, content_id: UUID, data: bytes) -> None:
        """Stores `data` durably before it returns; under another name first, so that no reader sees half of it.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with STORAGE_FULL.
        """
        with told_when_full():
            await asyncio.to_thread(self._put, self._path(session_id, content_id), data)

    def _put(self, path: str, data: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            _put_on_disk(Path(path), data)
            return
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self._files.pipe_file(f"{path}.new", data)
        self._files.mv(f"{path}.new", path)

    async def get(self, session_id: UUID, content_id: UUID) -> bytes:
        """Reads all of an object."""
        data: bytes = await asyncio.to_thread(self._files.cat_file, self._path(session_id, content_id))
        return data

    async def read(self, session_id: UUID, content_id: UUID) -> AsyncGenerator[bytes, None]:
        """Reads an object piece by piece.

        Raises:
            ServiceError: NOT_FOUND with CONTENT_NOT_FOUND: its session was deleted meanwhile.
        """
        try:
            file = await asyncio.to_thread(self._files.open, self._path(session_id, content_id), "rb")
        except FileNotFoundError:
            raise content_not_found(content_id) from None
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            await asyncio.to_thread(file.close)

    async def delete_session(self, session_id: UUID) -> None:
        """Removes everything of a session; nothing there is no error."""
        await asyncio.to_thread(self._delete, f"{self._root}/{session_id}")

    def _delete(self, path: str) -> None:
        if self._files.exists(path):
            self._files.rm(path, recursive=True)


def _put_on_disk(path: Path, data: bytes) -> None:
    """Writes a file that a power cut leaves whole, or does not leave at all: the row that names it comes after it."""
    _make_directory(path.parent)
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_directory(path.parent)


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
