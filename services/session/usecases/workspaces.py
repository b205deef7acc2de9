"""Workspaces and large texts: upload, download, read."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from services.kernel.identity import Caller
from services.session.domain import events
from services.session.domain.entities import LogEvent
from services.session.domain.errors import workspace_busy
from services.session.domain.events import EventDraft
from services.session.usecases.ports import LiveFeedPort, SessionStore
from services.session.usecases.sessions import canonical, require_writer


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was put into a workspace."""

    file_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StagedArchive:
    """An archive that was received and extracted, outside of any workspace.

    Attributes:
        directory: What it held.
        file_count: How many files.
        size_bytes: Their size.
        sha256: Of the archive, hexadecimal.
    """

    directory: Path
    file_count: int
    size_bytes: int
    sha256: str


class WorkspaceFiles(Protocol):
    """The directories, as these use cases need them."""

    def staged(self, pieces: AsyncIterator[bytes]) -> AbstractAsyncContextManager[StagedArchive]:
        """Receives an archive and extracts it into a directory of its own, which is there until the block ends."""

    async def merge(self, session_id: UUID, staged: StagedArchive, path: str) -> None:
        """Moves what was extracted into a workspace: all of it or nothing."""

    def archive(self, session_id: UUID, path: str, kind: str) -> AsyncGenerator[bytes, None]:
        """Packs a workspace."""


class ContentReader(Protocol):
    """Reads large texts."""

    def read(self, session_id: UUID, content_id: UUID) -> AsyncGenerator[bytes, None]:
        """Reads a text piece by piece."""


class WorkspaceUseCases:
    """The use cases."""

    def __init__(
        self,
        store: SessionStore,
        files: WorkspaceFiles,
        contents: ContentReader,
        feed: LiveFeedPort,
    ) -> None:
        """Args: store: the database; files: the directories; contents: large texts; feed: tells watchers."""
        self._store = store
        self._files = files
        self._contents = contents
        self._feed = feed

    async def upload(
        self, caller: Caller, session_id: UUID, path: str, pieces: AsyncIterator[bytes], request_id: str
    ) -> Uploaded:
        """Extracts an archive into a workspace: all of it, or nothing.

        Raises:
            ServiceError: as documented at WorkspaceService.UploadWorkspace.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
        written: list[LogEvent] = []
        # Received and extracted before the transaction: only moving it takes place under the head's lock.
        async with self._files.staged(pieces) as staged, self._store.begin(caller) as transaction:

            async def run() -> bytes:
                # Under the head's lock no turn begins, and no other upload merges.
                head = await transaction.lock_head(session_id)
                if any(turn.state.driven for turn in await transaction.open_turns(session_id)):
                    raise workspace_busy()
                await self._files.merge(session_id, staged, path)
                uploaded = events.WorkspaceUploaded(
                    staged.file_count, staged.size_bytes, path, caller.user_id
                )
                written.extend(await transaction.append(head, [EventDraft(uploaded)]))
                return canonical(staged.file_count, staged.size_bytes)

            request = canonical(session_id, path, staged.sha256)
            done = await transaction.once("UploadWorkspace", request_id, request, run)
        await self._feed.publish_events(session_id, written)
        return Uploaded(*json.loads(done))

    async def download(
        self, caller: Caller, session_id: UUID, path: str, kind: str
    ) -> AsyncGenerator[bytes, None]:
        """Packs a workspace, piece by piece.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND; INVALID_ARGUMENT for `path`.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
        async with aclosing(self._files.archive(session_id, path, kind)) as pieces:
            async for piece in pieces:
                yield piece

    async def read_content(
        self, caller: Caller, session_id: UUID, content_id: UUID
    ) -> AsyncGenerator[bytes, None]:
        """Reads a text that was too large for the log, piece by piece.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or CONTENT_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            await transaction.get_content(session_id, content_id)
        async with aclosing(self._contents.read(session_id, content_id)) as pieces:
            async for piece in pieces:
                yield piece
