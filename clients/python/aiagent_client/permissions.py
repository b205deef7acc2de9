"""`client.permissions`: questions to people, and their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from aiagent.session.v1 import permission_service_pb2 as pb
from aiagent.session.v1 import permission_service_pb2_grpc
from aiagent.session.v1.permission_service_pb2 import ResolvePermissionRequest
from aiagent.session.v1.session_pb2 import PermissionRequest
from aiagent_client.connection import Connection

if TYPE_CHECKING:
    from aiagent.session.v1.permission_service_pb2_grpc import PermissionServiceAsyncStub


class Permissions:
    """Calls of the permission service. All of them raise ApiError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: PermissionServiceAsyncStub = permission_service_pb2_grpc.PermissionServiceStub(
            connection.channel
        )

    async def list(
        self,
        session_id: str = "",
        *,
        states: Sequence[PermissionRequest.State.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[PermissionRequest]:
        """Yields permission requests, the oldest first: of one session, or of all the caller's sessions."""
        request = pb.ListPermissionRequestsRequest(session_id=session_id, states=states, page_size=page_size)
        while True:
            page = await self._connection.call(self._stub.ListPermissionRequests, request)
            for found in page.permission_requests:
                yield found
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def allow(
        self, session_id: str, permission_request_id: str, *, reason: str = "", request_id: str = ""
    ) -> PermissionRequest:
        """Lets the call run, once. Raises FailedPreconditionError with PERMISSION_REQUEST_RESOLVED."""
        return await self.resolve(
            session_id, permission_request_id, ResolvePermissionRequest.ALLOW_ONCE, reason, request_id
        )

    async def deny(
        self, session_id: str, permission_request_id: str, *, reason: str = "", request_id: str = ""
    ) -> PermissionRequest:
        """Denies the call; the agent reads the reason. Raises as `allow`."""
        return await self.resolve(
            session_id, permission_request_id, ResolvePermissionRequest.DENY, reason, request_id
        )

    async def resolve(
        self,
        session_id: str,
        permission_request_id: str,
        decision: ResolvePermissionRequest.Decision.ValueType,
        reason: str = "",
        request_id: str = "",
    ) -> PermissionRequest:
        """Answers a question; the answer is stored when this returns, and used once."""
        request = ResolvePermissionRequest(
            session_id=session_id,
            permission_request_id=permission_request_id,
            decision=decision,
            reason=reason,
            request_id=request_id,
        )
        return await self._connection.call(self._stub.ResolvePermission, request)
