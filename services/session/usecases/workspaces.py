"""Workspaces and large texts: upload, download, read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.session.domain import events
from services.session.domain.entities import LogEvent
from services.session.domain.errors import workspace_busy
from services.session.domain.events import EventDraft
from services.session.usecases.ports import LiveFeedPort, SessionStore
from services.session.usecases.sessions import require_writer


class Extracted(Protocol):
    """What an archive held."""

    @property
    def file_count(self) -> int:
        """How many files."""

    @property
    def size_bytes(self) -> int:
        """Their size."""


class WorkspaceFiles(Protocol):
    """The directories, as these use cases need them."""

    async def receive(self, pieces: AsyncIterator[bytes]) -> Path:
        """Keeps an archive in a temporary file."""

    async def unpack(self, archive: Path) -> tuple[Path, Extracted]:
        """Extracts an archive into a directory of its own."""

    async def merge(self, session_id: UUID, staging: Path, path: str, size_bytes: int) -> None:
        """Moves what was extracted into a workspace: all of it or nothing."""

    async def discard(self, staging: Path) -> None:
        """Removes what was extracted."""

    def archive(self, session_id: UUID, path: str, kind: str) -> AsyncIterator[bytes]:
        """Packs a workspace."""


class ContentReader(Protocol):
    """Reads large texts."""

    def read(self, session_id: UUID, content_id: UUID) -> AsyncIterator[bytes]:
        """Reads a text piece by piece."""


class WorkspaceUseCases:
    """The use cases."""

    def __init__(
        self, store: SessionStore, files: WorkspaceFiles, contents: ContentReader, feed: LiveFeedPort
    ) -> None:
        """Args: store: the database; files: the directories; contents: large texts; feed: tells watchers."""
        self._store = store
        self._files = files
        self._contents = contents
        self._feed = feed

    async def upload(
        self, caller: Caller, session_id: UUID, path: str, pieces: AsyncIterator[bytes]
    ) -> Extracted:
        """Extracts an archive into a workspace: all of it, or nothing. Uploading it again does the same again.

        Raises:
            ServiceError: as documented at WorkspaceService.UploadWorkspace.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
        staging, extracted = await self._files.unpack(await self._files.receive(pieces))
        written: list[LogEvent] = []
        try:
            async with self._store.begin(caller) as transaction:
                # Under the head's lock no turn begins, and no other upload merges.
                head = await transaction.lock_head(session_id)
                if any(turn.state.driven for turn in await transaction.open_turns(session_id)):
                    raise workspace_busy()
                await self._files.merge(session_id, staging, path, extracted.size_bytes)
                uploaded = events.WorkspaceUploaded(
                    extracted.file_count, extracted.size_bytes, path, caller.user_id
                )
                written = await transaction.append(head, [EventDraft(uploaded)])
        finally:
            await self._files.discard(staging)
        await self._feed.publish_events(session_id, written)
        return extracted

    async def download(self, caller: Caller, session_id: UUID, path: str, kind: str) -> AsyncIterator[bytes]:
        """Packs a workspace, piece by piece.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND; INVALID_ARGUMENT for `path`.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
        async for piece in self._files.archive(session_id, path, kind):
            yield piece

    async def read_content(self, caller: Caller, session_id: UUID, content_id: UUID) -> AsyncIterator[bytes]:
        """Reads a text that was too large for the log, piece by piece.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or CONTENT_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            await transaction.get_content(session_id, content_id)
        async for piece in self._contents.read(session_id, content_id):
            yield piece
