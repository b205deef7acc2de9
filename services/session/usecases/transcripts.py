"""Keeps the conversations of agents for whichever executor goes on with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol
from uuid import UUID

from services.session.domain.transcripts import AttemptName, NewEntry, TranscriptEntry

PAGE_ENTRIES = 500
PAGE_BYTES = 1024 * 1024


class TranscriptStore(Protocol):
    """The database as these use cases see it."""

    async def append(
        self, attempt: AttemptName, cli_session_id: UUID, subpath: str, entries: Sequence[NewEntry]
    ) -> int:
        """Adds what is new of the entries; returns the session's last position.

        Raises:
            ServiceError: FAILED_PRECONDITION with ATTEMPT_SUPERSEDED; NOT_FOUND with SESSION_NOT_FOUND.
        """

    async def position(self, attempt: AttemptName) -> int:
        """The session's last position; raises as `append`."""

    async def page(
        self, session_id: UUID, cli_session_id: UUID, after: int, limit: int, limit_bytes: int
    ) -> list[TranscriptEntry]:
        """The next entries of a conversation."""


class AttemptTokens(Protocol):
    """What proves that a caller runs an attempt."""

    def check(self, token: str, attempt: AttemptName) -> None:
        """Raises ServiceError PERMISSION_DENIED with TRANSCRIPT_TOKEN_INVALID unless it is this attempt's."""


class Transcripts:
    """Appends and reads."""

    def __init__(self, store: TranscriptStore, tokens: AttemptTokens) -> None:
        """Args: store: the database; tokens: tell who may."""
        self._store = store
        self._tokens = tokens

    async def append(
        self,
        attempt: AttemptName,
        token: str,
        cli_session_id: UUID,
        subpath: str,
        entries: Sequence[NewEntry],
    ) -> int:
        """Adds entries to a transcript; returns the session's last position.

        Raises:
            ServiceError: as documented at TranscriptService.
        """
        self._tokens.check(token, attempt)
        return await self._store.append(attempt, cli_session_id, subpath, entries)

    async def read(
        self, attempt: AttemptName, token: str, cli_session_id: UUID
    ) -> AsyncIterator[tuple[int, list[TranscriptEntry]]]:
        """Yields the session's last position and a conversation, in pages, of which there is at least one.

        The caller's is the newest attempt, the only one that may add: what it reads stands still.

        Raises:
            ServiceError: as documented at TranscriptService.
        """
        self._tokens.check(token, attempt)
        position = await self._store.position(attempt)
        after = 0
        while True:
            page = await self._store.page(attempt.session_id, cli_session_id, after, PAGE_ENTRIES, PAGE_BYTES)
            if page or after == 0:
                yield position, page
            if not page:
                return
            after = page[-1].position
