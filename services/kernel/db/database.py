"""Transactions, each under one of a schema's two roles.

The application role sees what row-level security lets the tenant see; the system role, for work that serves every
tenant, sees all. Which rows a statement can reach is decided by the connection, not by its WHERE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

import sqlalchemy as sa
from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.kernel.db.failures import database_failure, is_stale
from services.kernel.db.shares import Shares
from services.kernel.identity.caller import Caller

_TENANT: Final = sa.text(
    "SELECT set_config('aiagent.organization_id', :organization_id, true),"
    " set_config('aiagent.user_id', :user_id, true), set_config('aiagent.role', :role, true)"
)
_IDLE: Final = sa.text("SELECT set_config('idle_in_transaction_session_timeout', :idle, true)")
_PROBE: Final = sa.text("SELECT 1")
_LISTENER_PROBE_SECONDS: Final = 10.0
_NOTES: Final = "aiagent_notes"
_CALLS: Final = "aiagent_calls"


class Database:
    """The connections of one service to its own schema."""

    def __init__(
        self,
        application_url: str,
        system_url: str,
        *,
        pool_size: int = 8,
        system_pool_size: int = 4,
        dedicated_pool_size: int = 1,
        connect_timeout_seconds: float = 5.0,
        pool_timeout_seconds: float = 5.0,
        lock_timeout_seconds: float = 5.0,
        tenant_lock_timeout_seconds: float = 1.0,
        statement_timeout_seconds: float = 15.0,
        application_name: str = "aiagent",
    ) -> None:
        """Connects to nothing yet.

        Args:
            application_url: `postgresql://user:password@host:port/database` of the role `<schema>_application`.
            system_url: the same of `<schema>_system`.
            pool_size: most connections of the application role.
            system_pool_size: most connections of the system role.
            dedicated_pool_size: most connections of `dedicated_system`.
            connect_timeout_seconds: for a new connection.
            pool_timeout_seconds: how long to wait for a free connection.
            lock_timeout_seconds: how long a statement of the system role waits for a lock.
            tenant_lock_timeout_seconds: the same of the application role. Shorter: calls that wait for what one tenant
                has locked keep connections that every tenant needs, and whoever calls tries again.
            statement_timeout_seconds: how long a statement may run.
            application_name: shown in pg_stat_activity.
        """

        def engine(url: str, size: int, name: str, lock_seconds: float = lock_timeout_seconds) -> AsyncEngine:
            return create_async_engine(
                driver_url(url),
                pool_size=size,
                max_overflow=0,
                pool_timeout=pool_timeout_seconds,
                pool_use_lifo=True,
                pool_reset_on_return="rollback",
                # A statement's parameters may be a person's text: they belong neither in logs nor in errors.
                hide_parameters=True,
                connect_args={
                    "timeout": connect_timeout_seconds,
                    "server_settings": {
                        "application_name": f"{application_name}/{name}",
                        "lock_timeout": _milliseconds(lock_seconds),
                        "statement_timeout": _milliseconds(statement_timeout_seconds),
                        "idle_in_transaction_session_timeout": _milliseconds(
                            max(60.0, statement_timeout_seconds)
                        ),
                        "timezone": "UTC",
                    },
                },
            )

        self._application = engine(application_url, pool_size, "application", tenant_lock_timeout_seconds)
        self._shares = Shares(pool_size, pool_timeout_seconds)
        self._system = engine(system_url, system_pool_size, "system")
        self._dedicated = engine(system_url, dedicated_pool_size, "dedicated")
        self._relay = engine(system_url, 1, "relay")
        self._listener = engine(system_url, 1, "listener")
        self._on_commit: dict[str, Callable[[], None]] = {}
        self._probes = (
            engine(system_url, 1, "system probe"),
            engine(application_url, 1, "application probe"),
        )

    @asynccontextmanager
    async def tenant(self, caller: Caller) -> AsyncIterator[AsyncConnection]:
        """One transaction that sees only the caller's rows: commit at the end, rollback on any error.

        Of the connections an organization's calls have some at most: whatever they wait for, others get theirs.
        An OSError of the block itself passes as it is; one of the connection is told as below.

        Raises:
            ServiceError: UNAVAILABLE, DATABASE_UNAVAILABLE or DATABASE_BUSY.
        """
        values = {
            "organization_id": str(caller.organization_id),
            "user_id": str(caller.user_id),
            "role": caller.role.value,
        }
        async with (
            self._shares.one(caller.organization_id),
            self._transaction(self._application, _TENANT, values) as connection,
        ):
            yield connection

    def system(self, *, idle_seconds: float | None = None) -> AbstractAsyncContextManager[AsyncConnection]:
        """One transaction of the system role, across all tenants; otherwise as `tenant`.

        Args:
            idle_seconds: how long it may be between two statements until the database ends it: a process that is frozen
                in the middle keeps what it has locked no longer than that. The usual minute if left out.
        """
        if idle_seconds is None:
            return self._transaction(self._system)
        return self._transaction(self._system, _IDLE, {"idle": _milliseconds(idle_seconds)})

    def dedicated_system(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """As `system`, on a connection kept for it: what renews leases must not queue behind other work."""
        return self._transaction(self._dedicated)

    def relay_system(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """As `system`, on the one connection of the outbox's relay, which holds it for as long as a broker thinks."""
        return self._transaction(self._relay)

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Listens to what transactions `NOTIFY`, on a connection of its own, until that is lost or this is cancelled.

        Args:
            channel: its name.
            heard: called for each notification, and once in the beginning: what was told before was not heard.

        Raises:
            ServiceError: UNAVAILABLE: the database is away, or went.
        """
        try:
            async with self._listener.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                if driver is None:
                    raise AssertionError("the connection was opened")
                closed = asyncio.Event()
                driver.add_termination_listener(lambda _: closed.set())
                try:
                    await driver.add_listener(channel, lambda *_: heard())
                    heard()
                    while True:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(_LISTENER_PROBE_SECONDS):
                                await closed.wait()
                        # A connection that is gone without a word is found so.
                        await driver.execute("SELECT 1", timeout=_LISTENER_PROBE_SECONDS)
                finally:
                    # It listens for as long as it lives.
                    await connection.invalidate()
        except (exc.SQLAlchemyError, PostgresError, InterfaceError, OSError) as error:
            failure = database_failure(error)
            if failure is None:
                raise
            raise failure from error

    def on_commit(self, noted: str, call: Callable[[], None]) -> None:
        """Has `call` called after the commit of each transaction that `note` was told of; it must not block or raise.

        Args:
            noted: what `note` is given.
        """
        self._on_commit[noted] = call

    def _transaction(
        self,
        engine: AsyncEngine,
        opening: sa.TextClause = _PROBE,
        parameters: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        return _transaction(engine, opening, parameters or {}, self._on_commit)

    async def check(self) -> None:
        """Raises ServiceError UNAVAILABLE unless both roles can be reached.

        On connections kept for it: that all others are in use does not mean that the database is gone.
        """
        for engine in self._probes:
            async with self._transaction(engine):
                pass

    async def close(self) -> None:
        """Closes every connection."""
        for engine in (
            self._application,
            self._system,
            self._dedicated,
            self._relay,
            self._listener,
            *self._probes,
        ):
            await engine.dispose()


@asynccontextmanager
async def _transaction(
    engine: AsyncEngine,
    opening: sa.TextClause,
    parameters: Mapping[str, str],
    on_commit: Mapping[str, Callable[[], None]],
) -> AsyncIterator[AsyncConnection]:
    of_files = False
    try:
        connection = await _begin(engine, opening, parameters)
        driver = _driver_connection(connection)
        notes, calls = _notes(connection), _calls(connection)
        # They lie with the pooled connection: those of an earlier transaction that was rolled back mean nothing.
        notes.clear()
        calls.clear()
        try:
            yield connection
            await connection.commit()
            for call in [*calls, *(on_commit[noted] for noted in notes if noted in on_commit)]:
                call()
        except OSError:
            # The driver's own reach us as they are, and end its connection. Others are of what the block does besides:
            # a full disk, a path that is not to be read.
            of_files = not driver.is_closed()
            raise
        finally:
            # Without a commit this rolls back.
            await connection.close()
    except (exc.SQLAlchemyError, OSError) as error:
        failure = None if of_files and isinstance(error, OSError) else database_failure(error)
        if failure is None:
            raise
        raise failure from error


async def _begin(
    engine: AsyncEngine, opening: sa.TextClause, parameters: Mapping[str, str]
) -> AsyncConnection:
    """Opens a transaction with its first statement; once more if the pool's connection turns out to be dead."""
    for last in (False, True):
        connection = engine.connect()
        await connection.start()
        try:
            await connection.execute(opening, parameters)
        except BaseException as error:
            await connection.close()
            if last or not is_stale(error):
                raise
            continue
        return connection
    raise AssertionError("unreachable")


def note(connection: AsyncConnection, what: str) -> None:
    """Notes for `Database.on_commit` what a transaction has done; forgotten if it is rolled back."""
    _notes(connection).add(what)


def after_commit(connection: AsyncConnection, call: Callable[[], None]) -> None:
    """Has `call` called once this transaction has committed, as to count what it did; forgotten if it is rolled back.

    Args:
        connection: a transaction.
        call: must not block or raise.
    """
    _calls(connection).append(call)


def _calls(connection: AsyncConnection) -> list[Callable[[], None]]:
    if connection.sync_connection is None:
        raise AssertionError("the connection was not started")
    calls: list[Callable[[], None]] = connection.sync_connection.info.setdefault(_CALLS, [])
    return calls


def _notes(connection: AsyncConnection) -> set[str]:
    if connection.sync_connection is None:
        raise AssertionError("the connection was not started")
    notes: set[str] = connection.sync_connection.info.setdefault(_NOTES, set())
    return notes


def _driver_connection(connection: AsyncConnection) -> Any:
    """The `asyncpg.Connection` behind a connection that was started."""
    if connection.sync_connection is None:
        raise AssertionError("the connection was not started")
    return connection.sync_connection.connection.driver_connection


def driver_url(url: str) -> sa.URL:
    """Returns the URL with the asyncpg driver; `ssl` and the like stay as they are."""
    return make_url(url).set(drivername="postgresql+asyncpg")


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
