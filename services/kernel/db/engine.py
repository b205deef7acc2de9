"""Transactions of two roles.

The *application* role serves callers: row-level security is forced on it, and organization and user are set at the
start of each transaction, so that a query without its `WHERE` still leaks nothing. The *system* role serves the
service itself (drivers, sweeps, login) and sees every tenant; its queries live in one module per service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.kernel.errors import ServiceError, unavailable
from services.kernel.identity.caller import Caller

_log = structlog.get_logger(__name__)

_SET_TENANT = sa.text(
    "SELECT set_config('aiagent.organization_id', :organization_id, true),"
    " set_config('aiagent.user_id', :user_id, true), set_config('aiagent.role', :role, true)"
)
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    ConnectionError,
    TimeoutError,
    OSError,
)


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the database is away, not that a statement was wrong."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _GONE):
            return True
        if isinstance(seen, DBAPIError) and seen.connection_invalidated:
            return True
        if isinstance(seen, (InterfaceError, OperationalError)) and isinstance(seen.orig, _GONE):
            return True
        seen = seen.__cause__
    return False


def _away() -> ServiceError:
    return unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached", retry_after_seconds=1.0)


class Database:
    """One service's database, under its two roles."""

    def __init__(
        self,
        application_url: str,
        system_url: str,
        *,
        pool_size: int = 10,
        max_overflow: int = 10,
        statement_timeout_seconds: float = 30.0,
        lock_timeout_seconds: float = 10.0,
    ) -> None:
        """Prepares the pools; nothing connects yet.

        Args:
            application_url: `postgresql+asyncpg://` URL of the application role.
            system_url: The same of the system role.
            pool_size: Connections kept open by each pool.
            max_overflow: Connections above that, under load.
            statement_timeout_seconds: After this a statement is cancelled.
            lock_timeout_seconds: After this a statement no longer waits for a lock.
        """
        settings = {
            "server_settings": {
                "statement_timeout": str(int(statement_timeout_seconds * 1000)),
                "lock_timeout": str(int(lock_timeout_seconds * 1000)),
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
                "jit": "off",
            },
            "timeout": 5,
        }

        def engine(url: str, size: int, overflow: int) -> AsyncEngine:
            return create_async_engine(
                url,
                pool_size=size,
                max_overflow=overflow,
                pool_timeout=10,
                pool_recycle=1800,
                connect_args=settings,
            )

        self._application = engine(application_url, pool_size, max_overflow)
        self._system = engine(system_url, pool_size, max_overflow)
        # Lease renewals never queue behind other work.
        self._dedicated = engine(system_url, 1, 1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def tenant(self, caller: Caller) -> AsyncIterator[AsyncConnection]:
        """Opens a transaction that sees what the caller may see.

        Args:
            caller: Whose organization and user the transaction works for.

        Raises:
            ServiceError: UNAVAILABLE with DATABASE_UNAVAILABLE.
        """
        async with self._transaction(self._application) as connection:
            await connection.execute(
                _SET_TENANT,
                {
                    "organization_id": str(caller.organization_id),
                    "user_id": str(caller.user_id),
                    "role": caller.role.value,
                },
            )
            yield connection

    @asynccontextmanager
    async def system(self) -> AsyncIterator[AsyncConnection]:
        """Opens a transaction of the system role.

        Raises:
            ServiceError: UNAVAILABLE with DATABASE_UNAVAILABLE.
        """
        async with self._transaction(self._system) as connection:
            yield connection

    @asynccontextmanager
    async def dedicated_system(self) -> AsyncIterator[AsyncConnection]:
        """Opens a transaction of the system role on a connection that ordinary work cannot keep busy.

        Raises:
            ServiceError: UNAVAILABLE with DATABASE_UNAVAILABLE.
        """
        async with self._transaction(self._dedicated) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        # No ping before use: it would cost every transaction a round trip. The first statement that finds its
        # connection dead is answered UNAVAILABLE, and SQLAlchemy then replaces every connection of the pool.
        try:
            connection = await engine.connect()
        except Exception as error:
            if is_outage(error):
                raise _away() from error
            raise
        try:
            try:
                yield connection
                await connection.commit()
            except BaseException:
                if not connection.invalidated:
                    await _quietly_roll_back(connection)
                raise
            finally:
                await asyncio.shield(connection.close())
        except ServiceError:
            raise
        except Exception as error:
            if is_outage(error):
                raise _away() from error
            raise

    async def ping(self) -> None:
        """Asks the database for a sign of life.

        Raises:
            ServiceError: UNAVAILABLE with DATABASE_UNAVAILABLE.
        """
        async with self._transaction(self._dedicated) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def close(self) -> None:
        """Closes all connections."""
        for engine in (self._application, self._system, self._dedicated):
            await engine.dispose()


async def _quietly_roll_back(connection: AsyncConnection) -> None:
    """Rolls back; a connection that cannot even do that is thrown away, and its transaction with it."""
    try:
        await asyncio.shield(connection.rollback())
    except Exception as error:
        _log.info("rollback failed; the connection is closed", error=type(error).__name__)
        await connection.invalidate()
