"""Opens the transactions of use cases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.domain.accounts import User
from services.auth.store.rows import USER_COLUMNS, user_of
from services.auth.store.system_queries import SystemQueries
from services.auth.store.tables import users
from services.kernel.db import Database
from services.kernel.identity.caller import Caller


class TenantQueries:
    """See `usecases.ports.TenantTransaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Args: connection: a transaction of the application role."""
        self._connection = connection

    async def user_by_id(self, user_id: UUID) -> User | None:
        """See the port."""
        row = (await self._connection.execute(sa.select(*USER_COLUMNS).where(users.c.id == user_id))).first()
        return user_of(row) if row is not None else None


class DatabaseTransactions:
    """See `usecases.ports.Transactions`."""

    def __init__(self, database: Database) -> None:
        """Args: database: of the schema `auth`."""
        self._database = database

    @asynccontextmanager
    async def system(self) -> AsyncIterator[SystemQueries]:
        """See the port."""
        async with self._database.system() as connection:
            yield SystemQueries(connection)

    @asynccontextmanager
    async def tenant(self, caller: Caller) -> AsyncIterator[TenantQueries]:
        """See the port."""
        async with self._database.tenant(caller) as connection:
            yield TenantQueries(connection)
