"""Where tokens are kept: in memory, or in a file that several processes share."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import AsyncFileLock, Timeout

from aiagent_client.errors import CredentialsError

_LOCK_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """The tokens of one login. Times are seconds since the epoch, by this machine's clock.

    `renew_time` lies a little before `expire_time`: a token used after it might expire on its way to the server.
    """

    access_token: str
    refresh_token: str
    renew_time: float
    expire_time: float
    refresh_expire_time: float
    account: str = ""


class CredentialsStore(Protocol):
    """What a client needs to keep the tokens of one server."""

    def load(self) -> Credentials | None:
        """Returns what is stored, or None."""

    def save(self, credentials: Credentials) -> None:
        """Stores, in place of what was there."""

    def clear(self) -> None:
        """Forgets."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Keeps other users of the same store from renewing at the same time: a refresh token works once."""


class MemoryCredentials:
    """Keeps tokens as long as the process lives."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials

    def load(self) -> Credentials | None:
        """Returns what is stored, or None."""
        return self._credentials

    def save(self, credentials: Credentials) -> None:
        """Stores, in place of what was there."""
        self._credentials = credentials

    def clear(self) -> None:
        """Forgets."""
        self._credentials = None

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Nobody else uses this store."""
        yield


class CredentialsFile:
    """Keeps the tokens of one server in a JSON file that may hold those of others.

    The file has mode 0600 and its directory 0700. It is replaced, never written in place, so that a reader sees
    the old or the new one; writers and renewals hold the lock beside it.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._url = url

    def load(self) -> Credentials | None:
        """Returns what is stored for the server, or None.

        Raises CredentialsError when the file cannot be read.
        """
        entry = self._read().get(self._url)
        if not isinstance(entry, dict):
            return None
        try:
            return Credentials(
                access_token=str(entry["access_token"]),
                refresh_token=str(entry["refresh_token"]),
                renew_time=float(entry["renew_time"]),
                expire_time=float(entry["expire_time"]),
                refresh_expire_time=float(entry["refresh_expire_time"]),
                account=str(entry.get("account", "")),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def save(self, credentials: Credentials) -> None:
        """Stores, in place of what was there for the server. Raises CredentialsError. Hold the lock."""
        self._write({**self._read(), self._url: asdict(credentials)})

    def clear(self) -> None:
        """Forgets what is stored for the server. Raises CredentialsError. Hold the lock."""
        servers = self._read()
        if servers.pop(self._url, None) is not None:
            self._write(servers)

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Holds the lock beside the file. Raises CredentialsError when another process keeps it for 30 s."""
        try:
            self._make_directory()
            lock = AsyncFileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS, mode=0o600)
            await lock.acquire()
        except Timeout as error:
            raise CredentialsError(f"another process holds {self.path.with_suffix('.lock')}") from error
        except OSError as error:
            raise CredentialsError(
                f"cannot lock {self.path}: {error.strerror or type(error).__name__}"
            ) from error
        try:
            yield
        finally:
            await lock.release()

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise CredentialsError(f"cannot read {self.path}: {error}") from error
        servers = document.get("servers") if isinstance(document, dict) else None
        return servers if isinstance(servers, dict) else {}

    def _write(self, servers: dict[str, Any]) -> None:
        try:
            self._make_directory()
            # mkstemp creates the file with mode 0600: there is no moment in which another user could read it.
            descriptor, name = tempfile.mkstemp(prefix=".credentials-", dir=self.path.parent)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump({"servers": servers}, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CredentialsError(f"cannot write {self.path}: {error.strerror}") from error

    def _make_directory(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
