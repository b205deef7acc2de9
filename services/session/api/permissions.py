"""`PermissionService`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aiagent.session.v1 import permission_service_pb2 as pb
from aiagent.session.v1 import session_pb2
from aiagent.session.v1.permission_service_pb2_grpc import PermissionServiceServicer
from services.kernel.context import current_caller
from services.session.api import mapping
from services.session.api.pages import page
from services.session.usecases.permissions import Permissions


class PermissionServicer(PermissionServiceServicer):
    """The methods of `aiagent.session.v1.PermissionService`."""

    def __init__(self, permissions: Permissions) -> None:
        """Args: permissions: the use cases."""
        self._permissions = permissions

    async def ListPermissionRequests(
        self, request: pb.ListPermissionRequestsRequest, context: Any
    ) -> pb.ListPermissionRequestsResponse:
        """Lists questions."""
        caller = current_caller()
        session_id = mapping.optional_uuid(request.session_id)
        states = [session_pb2.PermissionRequest.State.Name(state) for state in request.states]
        requests, token = await page(
            caller,
            ("ListPermissionRequests", session_id, states),
            request.page_size,
            request.page_token,
            UUID,
            lambda after, limit: self._permissions.list_page(caller, session_id, states, after, limit),
            lambda row: row.id,
            mapping.permission_request,
        )
        return pb.ListPermissionRequestsResponse(permission_requests=requests, next_page_token=token)

    async def ResolvePermission(
        self, request: pb.ResolvePermissionRequest, context: Any
    ) -> session_pb2.PermissionRequest:
        """Answers a question."""
        answered = await self._permissions.resolve(
            current_caller(),
            UUID(request.session_id),
            UUID(request.permission_request_id),
            allow=request.decision == pb.ResolvePermissionRequest.ALLOW_ONCE,
            reason=request.reason,
            request_id=request.request_id,
        )
        return mapping.permission_request(answered)
