"""`TranscriptService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from aiagent.session.v1 import transcript_service_pb2 as pb
from aiagent.session.v1.transcript_service_pb2_grpc import TranscriptServiceServicer
from services.session.domain.transcripts import AttemptName, NewEntry
from services.session.usecases.transcripts import Transcripts


class TranscriptServicer(TranscriptServiceServicer):
    """The methods of `aiagent.session.v1.TranscriptService`; only executors may call them."""

    def __init__(self, transcripts: Transcripts) -> None:
        """Args: transcripts: the use cases."""
        self._transcripts = transcripts

    async def AppendTranscript(
        self, request: pb.AppendTranscriptRequest, context: Any
    ) -> pb.AppendTranscriptResponse:
        """Adds entries."""
        position = await self._transcripts.append(
            _attempt(request.fence),
            request.fence.token,
            UUID(request.cli_session_id),
            request.subpath,
            [NewEntry(UUID(entry.uuid), entry.json) for entry in request.entries],
        )
        return pb.AppendTranscriptResponse(position=position)

    async def ReadTranscript(
        self, request: pb.ReadTranscriptRequest, context: Any
    ) -> AsyncIterator[pb.ReadTranscriptResponse]:
        """Streams a conversation."""
        pages = self._transcripts.read(
            _attempt(request.fence), request.fence.token, UUID(request.cli_session_id)
        )
        async for position, entries in pages:
            yield pb.ReadTranscriptResponse(
                position=position,
                entries=[
                    pb.TranscriptEntry(
                        position=entry.position,
                        subpath=entry.subpath,
                        uuid=str(entry.uuid),
                        json=entry.json,
                    )
                    for entry in entries
                ],
            )


def _attempt(fence: pb.TranscriptFence) -> AttemptName:
    return AttemptName(UUID(fence.session_id), UUID(fence.turn_id), fence.attempt)
