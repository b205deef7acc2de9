"""`WorkspaceService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2

from aiagent.session.v1 import workspace_service_pb2 as pb
from aiagent.session.v1.workspace_service_pb2_grpc import WorkspaceServiceServicer
from services.kernel.context import current_caller
from services.session.domain.errors import invalid_request
from services.session.usecases.workspaces import WorkspaceUseCases

_KINDS = {"TAR_GZ": "application/gzip", "ZIP": "application/zip"}


class WorkspaceServicer(WorkspaceServiceServicer):
    """The methods of `aiagent.session.v1.WorkspaceService`."""

    def __init__(self, workspaces: WorkspaceUseCases) -> None:
        """Args: workspaces: the use cases."""
        self._workspaces = workspaces

    async def UploadWorkspace(
        self, request_iterator: AsyncIterator[pb.UploadWorkspaceRequest], context: Any
    ) -> pb.UploadWorkspaceResponse:
        """Extracts an archive."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or not first.session_id:
            raise invalid_request("session_id", "is needed in the first message")

        async def pieces() -> AsyncIterator[bytes]:
            yield first.archive.data
            async for request in requests:
                yield request.archive.data

        uploaded = await self._workspaces.upload(
            current_caller(), UUID(first.session_id), first.path, pieces(), first.request_id
        )
        return pb.UploadWorkspaceResponse(file_count=uploaded.file_count, size_bytes=uploaded.size_bytes)

    async def DownloadWorkspace(
        self, request: pb.DownloadWorkspaceRequest, context: Any
    ) -> AsyncIterator[pb.DownloadWorkspaceResponse]:
        """Packs a workspace."""
        kind = pb.DownloadWorkspaceRequest.Format.Name(request.format) if request.format else "TAR_GZ"
        content_type = _KINDS[kind]
        packed = self._workspaces.download(current_caller(), UUID(request.session_id), request.path, kind)
        async with aclosing(packed):
            async for piece in packed:
                yield pb.DownloadWorkspaceResponse(
                    archive=httpbody_pb2.HttpBody(content_type=content_type, data=piece)
                )
                content_type = ""
