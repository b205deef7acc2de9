"""Sessions: create, read, change, delete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.kernel.identity import Caller, Role
from services.kernel.ids import IdSource
from services.session.domain.entities import Session
from services.session.domain.errors import etag_mismatch, invalid_request, role_not_allowed
from services.session.domain.output_schema import find_fault
from services.session.domain.rules import check_options
from services.session.usecases.ports import (
    DriverWaker,
    NewSession,
    SessionFilter,
    SessionStore,
    SessionTransaction,
    WorkspaceStorePort,
)

DEFAULT_PERMISSION_TIMEOUT = timedelta(hours=24)
DEFAULT_TURN_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class CreateSession:
    """What a new session is to be; times None mean the defaults."""

    name: str
    mode: str
    sdk_options: Mapping[str, Any]
    labels: Mapping[str, str]
    permission_timeout: timedelta | None
    turn_timeout: timedelta | None
    request_id: str


@dataclass(frozen=True, slots=True)
class UpdateSession:
    """What to change of a session: new values by column."""

    session_id: UUID
    values: Mapping[str, Any]
    etag: str
    request_id: str


def require_writer(caller: Caller) -> None:
    """Refuses callers that may only read.

    Raises:
        ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED.
    """
    if caller.role is Role.VIEWER:
        raise role_not_allowed(caller.role.value.upper())


def canonical(*parts: object) -> bytes:
    """Writes a request in one form, to be hashed for its request id."""
    return json.dumps(parts, default=str, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")


class Sessions:
    """The use cases."""

    def __init__(
        self, store: SessionStore, ids: IdSource, workspaces: WorkspaceStorePort, driver: DriverWaker
    ) -> None:
        """Args: store: the database; ids: names sessions; workspaces: their directories; driver: wakes drivers."""
        self._store = store
        self._ids = ids
        self._workspaces = workspaces
        self._driver = driver

    async def create(self, caller: Caller, new: CreateSession) -> Session:
        """Creates a session with an empty workspace.

        Raises:
            ServiceError: PERMISSION_DENIED with ROLE_NOT_ALLOWED; INVALID_ARGUMENT with INVALID_REQUEST, for a
                malformed rule or output schema, or with REQUEST_ID_REUSED.
        """
        require_writer(caller)
        _check_options(new.sdk_options)
        session_id = self._ids.new_id()
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await transaction.insert_session(
                    NewSession(
                        id=session_id,
                        name=new.name,
                        mode=new.mode,
                        sdk_options=new.sdk_options,
                        labels=new.labels,
                        permission_timeout=new.permission_timeout or DEFAULT_PERMISSION_TIMEOUT,
                        turn_timeout=new.turn_timeout or DEFAULT_TURN_TIMEOUT,
                    )
                )
                # Before the commit: a directory without a session is harmless, a session without one is not.
                await self._workspaces.create(session_id)
                return session_id.bytes

            request = canonical(
                new.name, new.mode, new.sdk_options, new.labels, new.permission_timeout, new.turn_timeout
            )
            made = await transaction.once(
                "CreateSession", new.request_id, request, run, lives_with=session_id
            )
            return await transaction.get_session(UUID(bytes=made))

    async def get(self, caller: Caller, session_id: UUID) -> Session:
        """Returns a session.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            return await transaction.get_session(session_id)

    async def list_page(
        self, caller: Caller, wanted: SessionFilter, before: UUID | None, limit: int
    ) -> list[Session]:
        """Returns at most `limit` of the caller's sessions, the newest first, that are older than `before`."""
        async with self._store.begin(caller) as transaction:
            return await transaction.list_sessions(wanted, before, limit)

    async def update(self, caller: Caller, change: UpdateSession) -> Session:
        """Changes a session.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND; ABORTED with ETAG_MISMATCH; INVALID_ARGUMENT with
                INVALID_REQUEST, for a malformed rule or output schema.
        """
        require_writer(caller)
        _check_options(change.values.get("sdk_options") or {})
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await _check_etag(transaction, change.session_id, change.etag)
                await transaction.update_session(change.session_id, change.values)
                return b""

            request = canonical(change.session_id, change.values, change.etag)
            await transaction.get_session(change.session_id)
            await transaction.once("UpdateSession", change.request_id, request, run)
            return await transaction.get_session(change.session_id)

    async def delete(self, caller: Caller, session_id: UUID, etag: str, request_id: str) -> None:
        """Makes a session invisible; what it runs, its files and its rows are removed by its driver.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND; ABORTED with ETAG_MISMATCH.
        """
        require_writer(caller)
        async with self._store.begin(caller) as transaction:

            async def run() -> bytes:
                await _check_etag(transaction, session_id, etag)
                await transaction.mark_deleted(session_id)
                return b""

            await transaction.once("DeleteSession", request_id, canonical(session_id, etag), run)
        await self._driver.wake(session_id)


def _check_options(options: Mapping[str, Any]) -> None:
    check_options(options)
    fault = find_fault(options.get("output_schema") or {})
    if fault is not None:
        raise invalid_request(*fault)


async def _check_etag(transaction: SessionTransaction, session_id: UUID, etag: str) -> None:
    await transaction.lock_head(session_id)
    session = await transaction.get_session(session_id)
    if etag and etag != session.etag:
        raise etag_mismatch()
