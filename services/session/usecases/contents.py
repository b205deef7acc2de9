"""Keeps texts storable in the log: in place when small, in the blob store when large."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from services.kernel.ids import IdSource
from services.session.domain.entities import MAX_INLINE_BYTES, PREVIEW_CHARACTERS, Content
from services.session.usecases.ports import BlobStorePort


class ContentKeeper:
    """Turns texts into `Content`."""

    def __init__(self, blobs: BlobStorePort, ids: IdSource) -> None:
        """Args: blobs: where large texts go; ids: names them."""
        self._blobs = blobs
        self._ids = ids

    async def keep(self, session_id: UUID, text: str) -> Content:
        """Stores a text if it is too large for the log.

        The blob is written before the transaction that refers to it; if that never commits, the blob goes with the
        session.

        Args:
            session_id: The session it belongs to.
            text: Any text that UTF-8 can hold.

        Returns:
            The text, or its beginning and where the whole of it lies.
        """
        if len(text) <= MAX_INLINE_BYTES // 4:
            return Content(text)
        data = text.encode()
        if len(data) <= MAX_INLINE_BYTES:
            return Content(text)
        content_id = self._ids.new_id()
        await self._blobs.put(session_id, content_id, data)
        return Content(
            text=text[:PREVIEW_CHARACTERS],
            content_id=content_id,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )

    async def read(self, session_id: UUID, content: Content) -> str:
        """Returns the whole text, wherever it lies."""
        if content.content_id is None:
            return content.text
        return (await self._blobs.get(session_id, content.content_id)).decode()

    async def pieces(self, session_id: UUID, content_id: UUID) -> AsyncGenerator[str, None]:
        """Reads a text from the blob store piece by piece: it may be too large to be held for each who wants it.

        Raises:
            ServiceError: NOT_FOUND with CONTENT_NOT_FOUND: its session was deleted meanwhile.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        async with aclosing(self._blobs.read(session_id, content_id)) as chunks:
            async for chunk in chunks:
                yield decoder.decode(chunk)
