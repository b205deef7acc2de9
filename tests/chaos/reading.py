"""Reads what a session has come to, over the public port: its log and its files."""

from __future__ import annotations

import io
import tarfile

import grpc
from google.protobuf import json_format

from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import session_service_pb2, workspace_service_pb2
from tests.e2e.conftest import User

from .calling import AGAIN, Statuses, patiently
from .records import Event, SessionRecord
from .watching import digest

_TRIES = 20


def event_of(event: session_event_pb2.SessionEvent) -> Event:
    """An event as a plain value."""
    kind = str(event.payload.WhichOneof("kind"))
    payload = json_format.MessageToDict(event.payload, preserving_proto_field_name=True)
    at = event.create_time.seconds + event.create_time.nanos / 1e9
    return Event(event.sequence, event.turn_id, at, kind, digest(event), payload.get(kind, {}))


async def read_log(user: User, statuses: Statuses, session_id: str) -> list[Event]:
    """The whole log, page by page."""
    found: list[Event] = []
    token = ""
    while True:
        request = session_service_pb2.ListEventsRequest(
            session_id=session_id, page_size=500, page_token=token
        )
        page = await patiently(user, statuses, "ListEvents", user.sessions.ListEvents, request)
        found += [event_of(event) for event in page.events]
        token = page.next_page_token
        if not token:
            return found


async def read_session(user: User, statuses: Statuses, session_id: str) -> SessionRecord:
    """Log and files."""
    log = await read_log(user, statuses, session_id)
    return SessionRecord(session_id, log, await _files(user, statuses, session_id))


async def _files(user: User, statuses: Statuses, session_id: str) -> dict[str, str]:
    request = workspace_service_pb2.DownloadWorkspaceRequest(session_id=session_id)
    for attempt in range(_TRIES):
        packed = io.BytesIO()
        try:
            async for piece in user.workspaces.DownloadWorkspace(request, metadata=user.metadata, timeout=30):
                packed.write(piece.archive.data)
        except grpc.aio.AioRpcError as error:
            statuses.note("DownloadWorkspace", error)
            if error.code() not in AGAIN or attempt == _TRIES - 1:
                raise
            continue
        packed.seek(0)
        files = {}
        with tarfile.open(fileobj=packed) as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is not None:
                    files[entry.name.removeprefix("./")] = content.read().decode(errors="replace")
        return files
    raise AssertionError("unreachable")
