"""Questions to people: list, answer."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.kernel.identity import Caller
from services.session.domain import events
from services.session.domain.entities import LogEvent, PermissionRequest
from services.session.domain.errors import permission_request_resolved
from services.session.domain.events import EventDraft
from services.session.domain.states import PermissionRequestState
from services.session.usecases.ports import DriverWaker, LiveFeedPort, SessionStore
from services.session.usecases.sessions import canonical, require_writer


class Permissions:
    """The use cases."""

    def __init__(self, store: SessionStore, feed: LiveFeedPort, driver: DriverWaker) -> None:
        """Args: store: the database; feed: tells watchers; driver: wakes drivers."""
        self._store = store
        self._feed = feed
        self._driver = driver

    async def list_page(
        self,
        caller: Caller,
        session_id: UUID | None,
        states: Sequence[str],
        after: UUID | None,
        limit: int,
    ) -> list[PermissionRequest]:
        """Returns at most `limit` permission requests, the oldest first: of a session, or of all of the caller's."""
        async with self._store.begin(caller) as transaction:
            if session_id is not None:
                await transaction.get_session(session_id)
                return await transaction.list_permission_requests(session_id, None, states, after, limit)
            return await transaction.list_permission_requests(None, caller.user_id, states, after, limit)

    async def resolve(
        self,
        caller: Caller,
        session_id: UUID,
        permission_request_id: UUID,
        *,
        allow: bool,
        reason: str,
        request_id: str,
    ) -> PermissionRequest:
        """Stores a person's answer; the driver uses it, once.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or PERMISSION_REQUEST_NOT_FOUND; FAILED_PRECONDITION with
                PERMISSION_REQUEST_RESOLVED.
        """
        require_writer(caller)
        written: list[LogEvent] = []
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)

            async def run() -> bytes:
                head = await transaction.lock_head(session_id)
                request = await transaction.get_permission_request(session_id, permission_request_id)
                if request.state is not PermissionRequestState.PENDING:
                    raise permission_request_resolved(request.state)
                if request.expire_time <= await transaction.now():
                    # Its driver has yet to say so: an answer that comes too late is none.
                    raise permission_request_resolved(PermissionRequestState.EXPIRED)
                state = PermissionRequestState.ALLOWED if allow else PermissionRequestState.DENIED
                await transaction.resolve_permission_request(permission_request_id, state, reason)
                resolved = events.PermissionResolved(permission_request_id, state, reason, caller.user_id)
                written.extend(await transaction.append(head, [EventDraft(resolved, request.turn_id)]))
                return b""

            body = canonical(session_id, permission_request_id, allow, reason)
            await transaction.once("ResolvePermission", request_id, body, run)
            answered = await transaction.get_permission_request(session_id, permission_request_id)
        await self._feed.publish_events(session_id, written)
        await self._driver.wake(session_id)
        return answered
