"""`client.workspaces`: the directories that sessions work in."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from google.api.httpbody_pb2 import HttpBody

from aiagent.session.v1 import workspace_service_pb2 as pb
from aiagent.session.v1 import workspace_service_pb2_grpc
from aiagent.session.v1.workspace_service_pb2 import DownloadWorkspaceRequest
from aiagent_client.archives import Extracted, Packing, extract, scan
from aiagent_client.connection import Connection, backoff, call_metadata, new_request_id
from aiagent_client.errors import UnauthenticatedError, UnavailableError, error_from_rpc

if TYPE_CHECKING:
    from aiagent.session.v1.workspace_service_pb2_grpc import WorkspaceServiceAsyncStub

_TRANSFER_SECONDS: Final = 3600.0
_SILENCE_SECONDS: Final = 120.0
_ATTEMPTS: Final = 3
_PIECE: Final = 256 * 1024
_MAX_DOWNLOAD: Final = 16 * 1024**3


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What the server took; `skipped` are paths that were not sent, with the reason."""

    file_count: int
    size_bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


class Workspaces:
    """Calls of the workspace service. All of them raise ApiError, those on directories ArchiveError as well."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: WorkspaceServiceAsyncStub = workspace_service_pb2_grpc.WorkspaceServiceStub(
            connection.channel
        )

    async def upload(
        self,
        session_id: str,
        pieces: Callable[[], Iterator[bytes]],
        *,
        path: str = "",
        content_type: str = "application/gzip",
        request_id: str = "",
    ) -> Uploaded:
        """Extracts an archive (tar, tar.gz or zip) into the workspace: all of it, or nothing.

        `pieces` is called once for each attempt and must yield the same bytes each time; it runs in a thread.
        Raises InvalidArgumentError with ARCHIVE_INVALID, ResourceExhaustedError with WORKSPACE_TOO_LARGE,
        FailedPreconditionError with WORKSPACE_BUSY.
        """
        call_id = new_request_id()
        request_id = request_id or new_request_id()
        rejected: str | None = None
        attempt = 1
        while True:
            token = await self._connection.token(rejected)
            call = self._stub.UploadWorkspace(
                timeout=_TRANSFER_SECONDS, metadata=call_metadata(call_id, token)
            )
            try:
                async for request in _upload_requests(session_id, path, content_type, request_id, pieces()):
                    await call.write(request)
                await call.done_writing()
                response = await call
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error, call_id)
            else:
                return Uploaded(response.file_count, response.size_bytes)
            finally:
                # A source that failed must not leave half an archive waiting for its rest.
                call.cancel()
            if isinstance(failure, UnauthenticatedError) and token is not None and rejected is None:
                rejected = token
                continue
            if not isinstance(failure, UnavailableError) or attempt >= _ATTEMPTS:
                raise failure
            await asyncio.sleep(backoff(attempt, failure.retry_after))
            attempt += 1

    async def upload_directory(
        self,
        session_id: str,
        directory: Path,
        *,
        path: str = "",
        exclude: Sequence[str] = (),
        everything: bool = False,
        on_progress: Callable[[Packing], None] | None = None,
        request_id: str = "",
    ) -> Uploaded:
        """Sends a directory's content, packed on the way; `path` is where it goes, relative to the workspace.

        Hidden files go too; `exclude` takes patterns as `.git`. Unless `everything` is asked for, what git ignores and
        names that are private (`archives.PRIVATE`) stay. What a workspace does not take (sockets, devices,
        links that lead out) is left out and named in the answer. `on_progress` is called from a thread.
        Raises ArchiveError, and as `upload`.
        """
        packing = await asyncio.to_thread(scan, directory, exclude, everything=everything)

        def pieces() -> Iterator[bytes]:
            for piece in packing.pieces():
                if on_progress is not None:
                    on_progress(packing)
                yield piece

        uploaded = await self.upload(session_id, pieces, path=path, request_id=request_id)
        return Uploaded(uploaded.file_count, uploaded.size_bytes, tuple(packing.skipped))

    async def download(
        self,
        session_id: str,
        *,
        path: str = "",
        archive_format: DownloadWorkspaceRequest.Format.ValueType = DownloadWorkspaceRequest.FORMAT_UNSPECIFIED,
    ) -> AsyncIterator[bytes]:
        """Yields the workspace, or the part at `path`, as an archive in pieces."""
        request = DownloadWorkspaceRequest(session_id=session_id, path=path, format=archive_format)
        async for response in self._connection.stream(
            lambda metadata: self._stub.DownloadWorkspace(
                request, timeout=_TRANSFER_SECONDS, metadata=metadata
            ),
            silence=_SILENCE_SECONDS,
        ):
            yield response.archive.data

    async def download_workspace(
        self,
        session_id: str,
        directory: Path,
        *,
        path: str = "",
        max_bytes: int = _MAX_DOWNLOAD,
        on_progress: Callable[[int], None] | None = None,
    ) -> Extracted:
        """Extracts the workspace, or the part at `path`, into a local directory; files of the same name are replaced.

        No entry leads out of the directory, whatever the agent left in its workspace. `on_progress` gets the bytes
        received so far. Raises ArchiveError.
        """
        with tempfile.TemporaryFile(prefix="aiagent-") as archive:
            received = 0
            async for piece in self.download(
                session_id, path=path, archive_format=DownloadWorkspaceRequest.TAR_GZ
            ):
                await asyncio.to_thread(archive.write, piece)
                received += len(piece)
                if on_progress is not None:
                    on_progress(received)
            archive.seek(0)
            return await asyncio.to_thread(extract, archive, directory, max_bytes=max_bytes)


async def _upload_requests(
    session_id: str, path: str, content_type: str, request_id: str, pieces: Iterator[bytes]
) -> AsyncIterator[pb.UploadWorkspaceRequest]:
    yield pb.UploadWorkspaceRequest(session_id=session_id, path=path, request_id=request_id)
    first = True
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        for start in range(0, len(piece), _PIECE):
            body = HttpBody(data=piece[start : start + _PIECE])
            if first:
                body.content_type = content_type
                first = False
            yield pb.UploadWorkspaceRequest(archive=body)
