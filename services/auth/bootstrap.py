"""Composes the auth service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from aiagent.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from services.auth.api.servicer import POLICIES, AuthServicer, UseCases
from services.auth.domain.errors import DOMAIN
from services.auth.gateways.password_file import OwnersFile
from services.auth.gateways.passwords import BcryptHasher
from services.auth.gateways.vault import SecretVault
from services.auth.settings import AuthSettings
from services.auth.store.tables import SCHEMA
from services.auth.store.transactions import DatabaseTransactions
from services.auth.usecases.accounts import GetMe, Register
from services.auth.usecases.first_administrator import CreateFirstAdministrator
from services.auth.usecases.gate import Gate
from services.auth.usecases.housekeeping import purge
from services.auth.usecases.signing_keys import SigningKeys
from services.auth.usecases.tokens import Login, Logout, Refresh, RefreshTokens
from services.kernel import context
from services.kernel.clock import Clock, SystemClock
from services.kernel.db import Database
from services.kernel.grpc import KernelServer, build_server
from services.kernel.housekeeping import keep_house
from services.kernel.identity.access_tokens import JwksVerifier
from services.kernel.ids import Uuid7Source
from services.kernel.migrating import bring_up_to_date
from services.kernel.readiness import once_reached, watch_database

# Beside those whose password is hashed, a few may stand in the database.
_LOGINS_BESIDE_THREADS: Final = 2
_MIGRATIONS: Final = Path(__file__).with_name("migrations")

Announce = Callable[[str, str, Path], None]
"""Told the first administrator's e-mail address and password, and the file it is kept in; once."""


def show_password(email: str, password: str, path: Path) -> None:
    """Prints them on standard output."""
    sys.stdout.write(f"  administrator {email}, password {password} (kept in {path})\n")
    sys.stdout.flush()


class AuthService:
    """The auth service in one process; see `services.kernel.lifecycle.Service`."""

    name = "auth"

    def __init__(
        self,
        *,
        settings: AuthSettings,
        server: KernelServer,
        database: Database,
        hasher: BcryptHasher,
        transactions: DatabaseTransactions,
        keys: SigningKeys,
        first_administrator: CreateFirstAdministrator,
        password_file: OwnersFile,
        clock: Clock,
        announce: Announce,
    ) -> None:
        """Use `build`."""
        self._settings = settings
        self._server = server
        self._database = database
        self._hasher = hasher
        self._transactions = transactions
        self._keys = keys
        self._first_administrator = first_administrator
        self._password_file = password_file
        self._clock = clock
        self._announce = announce
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """Where gRPC listens."""
        return self._server.port

    async def start(self) -> None:
        """See Service. Makes the first signing key and the first administrator; waits for the database to do so.

        Raises:
            ValueError: a setting does not fit what is stored.
            OSError: the port is in use.
            FileNotWritten: the state directory takes no file.
        """
        await self._server.open()
        await once_reached(self._prepare, SystemClock())
        await self._server.start()
        for name, work in (
            ("auth-housekeeping", keep_house(partial(purge, self._transactions, self._clock), self._clock)),
            ("auth-readiness", watch_database(self._database.check, self._server.health, SystemClock())),
        ):
            self._tasks.append(asyncio.create_task(work, name=name, context=context.detached()))

    async def _prepare(self) -> None:
        await self._database.check()
        await self._keys.prepare()
        email = self._settings.admin_email
        password = await self._first_administrator(email)
        if password is not None:
            self._announce(email, password, self._password_file.path)

    async def drain(self, grace_seconds: float) -> None:
        """See Service."""
        await self._server.drain_calls(grace_seconds)

    async def stop(self) -> None:
        """See Service."""
        await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hasher.close()
        await self._database.close()


async def build(
    settings: AuthSettings, *, clock: Clock | None = None, announce: Announce = show_password
) -> AuthService:
    """Builds the service; it connects to nothing before `start`.

    Args:
        clock: the real one by default.
        announce: told the first administrator's password, once in the life of a database.

    Raises:
        ValueError: a setting is wrong.
    """
    clock = clock or SystemClock()
    ids = Uuid7Source()
    database = Database(
        settings.auth_database_url.get_secret_value(),
        settings.auth_system_database_url.get_secret_value(),
        pool_size=4,
        system_pool_size=8,
        application_name="aiagent/auth",
    )
    transactions = DatabaseTransactions(database)
    vault = SecretVault(settings.auth_encryption_key.get_secret_value())
    hasher = BcryptHasher(
        rounds=settings.auth_bcrypt_rounds,
        threads=settings.auth_hashing_threads,
        waiting=settings.auth_hashing_waiting,
    )
    keys = SigningKeys(transactions, vault, clock, ids)
    refresh_tokens = RefreshTokens(vault, ids)
    gate = Gate(settings.auth_hashing_threads + _LOGINS_BESIDE_THREADS, settings.auth_hashing_waiting)
    password_file = OwnersFile(settings.state_dir)
    servicer = AuthServicer(
        UseCases(
            register=Register(transactions, hasher, vault, clock, ids),
            login=Login(transactions, hasher, vault, keys, refresh_tokens, gate, clock),
            refresh=Refresh(transactions, keys, refresh_tokens, clock),
            logout=Logout(transactions, refresh_tokens, clock),
            get_me=GetMe(transactions),
            keys=keys,
        ),
        settings.auth_trusted_hops,
    )
    server = build_server(
        listen=settings.auth_listen,
        domain=DOMAIN,
        register=[partial(add_AuthServiceServicer_to_server, servicer)],
        policies=POLICIES,
        users=JwksVerifier(keys.key_set, clock=clock),
        reflect=settings.reflection,
    )
    return AuthService(
        settings=settings,
        server=server,
        database=database,
        hasher=hasher,
        transactions=transactions,
        keys=keys,
        first_administrator=CreateFirstAdministrator(transactions, hasher, password_file, clock, ids),
        password_file=password_file,
        clock=clock,
        announce=announce,
    )


async def migrate(settings: AuthSettings) -> str:
    """Brings the schema up to date; returns a line that says what it is then.

    Raises:
        ValueError: the owner's database URL is not set.
    """
    return await bring_up_to_date(SCHEMA, settings.auth_owner_database_url, _MIGRATIONS)


async def rotate_keys(settings: AuthSettings) -> str:
    """Adds a signing key that takes over in ten minutes; returns a line that names it."""
    database = Database(
        settings.auth_database_url.get_secret_value(), settings.auth_system_database_url.get_secret_value()
    )
    try:
        vault = SecretVault(settings.auth_encryption_key.get_secret_value())
        keys = SigningKeys(DatabaseTransactions(database), vault, SystemClock(), Uuid7Source())
        # Also holds the encryption key against what is stored, before anything is sealed with it.
        await keys.prepare()
        return f"signing key {await keys.rotate()} added"
    finally:
        await database.close()
