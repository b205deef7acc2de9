"""The store of transcripts in memory, behind the port of the use cases, and served over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from aiagent.session.v1 import transcript_service_pb2 as pb
from aiagent.session.v1.transcript_service_pb2_grpc import TranscriptServiceServicer
from services.executor.domain.transcripts import Entry, Namer
from services.executor.usecases.ports import (
    AttemptPass,
    StoredTranscript,
    TranscriptRefused,
    TranscriptUnavailable,
)


class MemoryTranscripts:
    """See `usecases.ports.TranscriptPort`. An attempt that was told of with `begin` closes those before it."""

    def __init__(self) -> None:
        self.entries: dict[UUID, list[tuple[str, str, str, str]]] = {}
        self.newest: dict[UUID, AttemptPass] = {}
        self.appends = 0
        self.away = False

    def begin(self, attempt: AttemptPass) -> None:
        """A new attempt begins."""
        self.newest[attempt.session_id] = attempt

    def position(self, session_id: UUID) -> int:
        """The session's last position."""
        return len(self.entries.get(session_id, ()))

    def _check(self, attempt: AttemptPass) -> None:
        if self.away:
            raise TranscriptUnavailable("away")
        if self.newest.get(attempt.session_id, attempt) != attempt:
            raise TranscriptRefused("another attempt has begun")

    async def append(
        self, attempt: AttemptPass, cli_session_id: str, subpath: str, entries: Sequence[Entry]
    ) -> int:
        self._check(attempt)
        self.appends += 1
        kept = self.entries.setdefault(attempt.session_id, [])
        for entry in entries:
            if not any(known[:3] == (cli_session_id, subpath, entry.id) for known in kept):
                kept.append((cli_session_id, subpath, entry.id, entry.json))
        return len(kept)

    async def read(self, attempt: AttemptPass, cli_session_id: str) -> StoredTranscript:
        self._check(attempt)
        kept = self.entries.get(attempt.session_id, [])
        return StoredTranscript(len(kept), tuple(entry[1:] for entry in kept if entry[0] == cli_session_id))


class ServedTranscripts(TranscriptServiceServicer):
    """The same over gRPC; whoever calls may."""

    def __init__(self, transcripts: MemoryTranscripts) -> None:
        self._transcripts = transcripts

    async def AppendTranscript(
        self, request: pb.AppendTranscriptRequest, context: Any
    ) -> pb.AppendTranscriptResponse:
        entries = [Entry(entry.uuid, True, "", entry.json) for entry in request.entries]
        position = await self._transcripts.append(
            _attempt(request.fence), request.cli_session_id, request.subpath, entries
        )
        return pb.AppendTranscriptResponse(position=position)

    async def ReadTranscript(
        self, request: pb.ReadTranscriptRequest, context: Any
    ) -> AsyncIterator[pb.ReadTranscriptResponse]:
        stored = await self._transcripts.read(_attempt(request.fence), request.cli_session_id)
        entries = [
            pb.TranscriptEntry(subpath=subpath, uuid=uuid, json=text)
            for subpath, uuid, text in stored.entries
        ]
        yield pb.ReadTranscriptResponse(position=stored.position, entries=entries)


def _attempt(fence: pb.TranscriptFence) -> AttemptPass:
    return AttemptPass(UUID(fence.session_id), UUID(fence.turn_id), fence.attempt, fence.token)


def an_entry(**content: Any) -> Entry:
    """An entry as the CLI would write it."""
    return Namer().name({"type": "user", **content})
